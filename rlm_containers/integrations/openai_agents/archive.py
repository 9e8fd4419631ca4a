"""A workspace as a tar archive, which the container's own ``tar`` writes and reads."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from agents.sandbox.util.tar_utils import strip_tar_member_prefix, validate_tarfile

from rlm_containers.errors import WorkspaceError, format_size
from rlm_containers.interpreter import CommandResult, StreamName
from rlm_containers.sandbox import Sandbox, call_in_thread
from rlm_containers.state import free_space

#: Where ``tar`` is looked for: nowhere that a cell may write.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


#: Bytes that a workspace may grow by while it is archived, besides as much as it has.
_SLACK = 64 * 1024**2


#: How what ``tarfile`` would decompress begins: gzip, bzip2, xz, lzma, zstd.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\0\0", b"\x28\xb5\x2f\xfd")

#: The headers of pax and GNU that describe the member after them, and the most bytes of all.
#: ``tarfile`` keeps them in memory.
_DESCRIPTIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MOST_DESCRIBED = 64 * 1024**2

#: Members that an archive may have besides the files that were listed.
_MORE_MEMBERS = 10_000


async def pack(box: Sandbox, root: PurePosixPath, skipped: Iterable[str]) -> io.IOBase:
    """Return a directory of a container as an archive, which other backends of the SDK can read.

    Args:
        box: the sandbox.
        root: the directory.
        skipped: paths in it that stay out.

    Raises:
        WorkspaceError: ``tar`` fails, or this host has no room for the archive.
        UnsafeTarMemberError, tarfile.TarError, OSError: the archive cannot be read or written.
    """
    found = await box.files.alist(root, recursive=True)
    # tar rounds up to blocks of 512 bytes; what is written meanwhile should fit, too.
    most = sum(file.size + 2048 for file in found) * 2 + _SLACK
    with tempfile.TemporaryFile() as archive:
        room = free_space(archive.fileno())
        if most > room:
            raise WorkspaceError(
                f"There is no room for an archive of the workspace: that may have up to "
                f"{format_size(most)}, and {tempfile.gettempdir()} has {format_size(room)}.",
                remedy="Make room there, or let TMPDIR name another directory. The holes of sparse "
                "files count.",
                container=box.name,
            )
        arguments = ["tar", "-c", "-f", "-", "-C", str(root.parent)]
        arguments += [f"--exclude={root.name}/{path}" for path in skipped]
        result = await box.acommand(
            [*arguments, root.name], env=_ENVIRONMENT, on_output=_Writer(archive, most).write
        )
        _check(box, result)

        def rewrite() -> io.IOBase:
            archive.seek(0)
            check_members(archive, len(found) + _MORE_MEMBERS)
            archive.seek(0)
            return strip_tar_member_prefix(
                cast(io.IOBase, archive), prefix=root.name, relativize_symlinks_under=root
            )

        return await call_in_thread(rewrite)


def check_members(archive: BinaryIO, most: int) -> None:
    """Check the headers of an archive that a container has sent, before the SDK reads them.

    The SDK would decompress it, write the holes of sparse files, and hold headers of any length: a
    few bytes could fill this host's disk and memory.

    Args:
        archive: the archive.
        most: how many members it may have.

    Raises:
        tarfile.TarError: it has something that ``tar -c`` does not write, or too much.
    """
    if archive.read(max(map(len, _COMPRESSED))).startswith(_COMPRESSED):
        raise tarfile.ReadError("it is compressed")
    archive.seek(0)
    members = described = 0
    while len(header := archive.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE and any(header):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        members += 1
        if members > most:
            raise tarfile.ReadError(f"it has more than {most:,} members")
        if member.type == tarfile.GNUTYPE_SPARSE or member.size < 0:
            raise tarfile.ReadError("it has sparse files")
        if member.type not in _DESCRIPTIONS and not member.isreg():
            continue
        blocks = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if member.isreg():
            archive.seek(blocks, io.SEEK_CUR)
            continue
        described += blocks
        if described > _MOST_DESCRIBED:
            raise tarfile.ReadError("its headers are too long")
        text = archive.read(blocks)
        if member.type != tarfile.GNUTYPE_LONGNAME and (b"GNU.sparse" in text or b" size=" in text):
            raise tarfile.ReadError("it has sparse files, or some of more than 8 GB in a header")


async def unpack(
    box: Sandbox, root: PurePosixPath, archive: bytes, reserved: Iterable[str]
) -> None:
    """Unpack an archive into a directory of a container.

    Links may lead anywhere: it is unpacked in the container, where whatever follows them is.

    Args:
        box: the sandbox.
        root: the directory.
        archive: the archive.
        reserved: names in the directory that nothing in the archive may have.

    Raises:
        WorkspaceError: ``tar`` fails.
        UnsafeTarMemberError, tarfile.TarError: it is no archive, or one that leads out of itself.
    """

    def validate() -> None:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as opened:
            validate_tarfile(opened, reject_rel_paths=reserved)

    await call_in_thread(validate)
    # -o: the files become the user's of the container, whoever had them.
    arguments = ["tar", "-x", "-o", "-f", "-", "-C", str(root)]
    _check(box, await box.acommand(arguments, env=_ENVIRONMENT, input=archive))


class _Writer:
    """Writes standard output to a file of this host, up to a number of bytes."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._left = most

    def write(self, stream: StreamName, data: bytes) -> None:
        if stream == "stderr":
            return
        self._left -= len(data)
        if self._left < 0:
            raise WorkspaceError(
                "The workspace grew much while it was archived.",
                remedy="Stop what writes to it first.",
            )
        self._file.write(data)


def _check(box: Sandbox, result: CommandResult) -> None:
    if result.status != "ok":
        said = "; ".join((*result.notices, result.stderr.text.strip()))
        raise WorkspaceError(
            f"`tar` failed in the container with status {result.exit_code}: {said}",
            remedy="The image needs tar, and its user access to all files of the workspace.",
            container=box.name,
        )
