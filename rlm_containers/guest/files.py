"""Works on the files of the workspace for the host, where the host has no directory of its own.

The supervisor forks a process for each operation, as it does for a command: whatever a cell has put
into the workspace, only that process waits for it. Its standard input and output are streams of
*records*, which have the form of frames; :mod:`rlm_guest.wire` describes both.

No link is followed, so that this behaves as the host's own methods do.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, Callable

from . import wire

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Nodes in one record.
_BATCH = 200

#: What a file takes at least, as the host counts it.
_LEAST_FILE = 4096


class HostGoneError(Exception):
    """The input has ended in the middle: the host gives the operation up."""


def serve(root: str, request: dict[str, Any]) -> int:
    """Do one operation. Return the exit status of its process.

    Args:
        root: the workspace.
        request: ``op`` and its arguments.
    """
    try:
        _OPERATIONS[request["op"]](os.open(root, _DIRECTORY), request)
    except HostGoneError:
        return 1
    except OSError as error:
        _fail(error)
        return 1
    return 0


# Operations


def _list(top: int, request: dict[str, Any]) -> None:
    """Send the nodes in a directory, in alphabetical order, each directory before its contents."""
    rows: list[list[Any]] = []
    for row in _walk(top, request["path"], request["depth"], request["most"]):
        rows.append(row)
        if len(rows) == _BATCH:
            _send_json(wire.NODES, rows)
            rows = []
    _send_json(wire.NODES, rows)


def _stat(top: int, request: dict[str, Any]) -> None:
    parts = request["path"]
    if parts:
        directory = _open_below(top, parts[:-1])
        _send_json(wire.NODES, [_row("/".join(parts), parts[-1], directory)])
    else:
        _send_json(wire.NODES, [_described(".", os.fstat(top), None)])


def _make_directory(top: int, request: dict[str, Any]) -> None:
    parts = request["path"]
    directory = _open_below(top, parts[:-1], make=True)
    try:
        os.mkdir(parts[-1], 0o755, dir_fd=directory)
    except FileExistsError:
        if not stat.S_ISDIR(_found(parts[-1], directory).st_mode):
            raise


def _discard(top: int, request: dict[str, Any]) -> None:
    parts = request["path"]
    _remove(parts[-1], _open_below(top, parts[:-1]))


def _move(top: int, request: dict[str, Any]) -> None:
    source, target = request["path"], request["target"]
    below = _open_below(top, source[:-1])
    to = _open_below(top, target[:-1], make=True)
    os.rename(source[-1], target[-1], src_dir_fd=below, dst_dir_fd=to)


def _put(top: int, request: dict[str, Any]) -> None:
    """Make or replace what the host sends. With ``clear``, remove everything else before."""
    if request.get("clear"):
        for name in os.listdir(top):
            _remove(name, top)
    records = _records()
    directories = []
    while True:
        kind, payload = next(records)
        if kind == wire.END:
            break
        node = json.loads(payload)
        *above, name = node["path"]
        directory = _open_below(top, above, make=True)
        if node["kind"] == "file":
            _put_file(directory, name, node, records)
        elif node["kind"] == "directory":
            os.mkdir(name, 0o700, dir_fd=directory)
            directories.append(node)
        else:
            os.symlink(node["target"], name, dir_fd=directory)
        os.close(directory)
    # At last: it may be locked then, and writing to it changes its time.
    for node in reversed(directories):
        directory = _open_below(top, node["path"])
        _set_attributes(directory, node)
        os.close(directory)


def _put_file(
    directory: int, name: str, node: dict[str, Any], records: Iterator[tuple[int, bytes]]
) -> None:
    """Write a file under another name and rename it, so that it is replaced as a whole."""
    before = None
    if node["modified"] is None:  # a single file, which keeps its permissions
        try:
            found = _found(name, directory).st_mode
            if stat.S_ISREG(found):
                before = stat.S_IMODE(found) & 0o777 | stat.S_IRUSR
        except FileNotFoundError:
            pass
    temporary = ".{}.new".format(os.urandom(8).hex())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        while True:
            kind, payload = next(records)
            if kind == wire.END:
                break
            _write(file, payload)
        _set_attributes(file, node if before is None else {**node, "mode": before})
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(file)


def _get(top: int, _: dict[str, Any]) -> None:
    """Send the files that the host names; of each only the blocks that it has not yet."""
    for kind, payload in _records():
        if kind == wire.END:
            return
        wanted = json.loads(payload)
        try:
            *above, name = wanted["path"]
            directory = _open_below(top, above)
            try:
                file = _open_regular(directory, name)
            finally:
                os.close(directory)
        except OSError as error:
            _fail(error)
            continue
        try:
            _send_file(file, "/".join(wanted["path"]), wanted["blocks"])
        finally:
            os.close(file)


def _send_file(file: int, path: str, blocks: str) -> None:
    """Send a file.

    Args:
        file: a descriptor.
        path: its path.
        blocks: the SHA-256 of blocks that the host has, in hexadecimal, one after another.
    """
    import hashlib

    known = {bytes.fromhex(blocks[i : i + 64]): i // 64 for i in range(0, len(blocks), 64)}
    found = os.fstat(file)
    _send_json(wire.NODES, [_described(path, found, None)])
    left = found.st_size
    while left > 0:
        data = _read_block(file, min(left, wire.BLOCK))
        if not data:
            break
        left -= len(data)
        number = known.get(hashlib.sha256(data).digest()) if known else None
        if number is None:
            _send(wire.DATA, data)
        else:
            _send(wire.SAME, number.to_bytes(4, "big"))
    _send(wire.END, b"")


def _usage(top: int, request: dict[str, Any]) -> None:
    """Send what the workspace takes, counted as the host counts it, and what is free."""
    files = state = 0
    linked = set()
    whole = True
    try:
        # Without a count only what is free is asked for.
        for path, mode, _, blocks, _, _, inode, links, _ in (
            _walk(top, (), request["depth"], request["most"]) if request["count"] else ()
        ):
            if links > 1 and not stat.S_ISDIR(mode):
                if inode in linked:
                    continue
                linked.add(inode)
            size = max(_LEAST_FILE, blocks * 512)
            if path.partition("/")[0] in wire.RESERVED:
                state += size
            else:
                files += size
    except OSError:  # a directory that a cell has locked
        whole = False
    free = os.fstatvfs(top)
    room = free.f_bavail * free.f_frsize
    _send_json(wire.NODES, [files, state, whole, room, free.f_favail])


_OPERATIONS: dict[str, Callable[[int, dict[str, Any]], None]] = {
    "list": _list,
    "stat": _stat,
    "make_directory": _make_directory,
    "discard": _discard,
    "move": _move,
    "put": _put,
    "get": _get,
    "usage": _usage,
}


# The tree


def _walk(top: int, parts: Any, depth: int, most: int) -> Iterator[list[Any]]:
    """Yield what :func:`_described` returns of each node, at most ``most`` of them."""
    prefix = "".join(part + "/" for part in parts)
    stack = [_listed(_open_below(top, parts), ".", prefix)]
    while stack:
        directory, prefix, names = stack[-1]
        if not names:
            os.close(stack.pop()[0])
            continue
        name = names.pop()
        try:
            row = _row(prefix + name, name, directory)
        except FileNotFoundError:  # removed meanwhile
            continue
        yield row
        most -= 1
        if most <= 0:
            return
        if stat.S_ISDIR(row[1]) and len(stack) < depth:
            try:
                stack.append(_listed(directory, name, prefix + name + "/"))
            except FileNotFoundError:
                pass


def _listed(directory: int, name: str, prefix: str) -> tuple[int, str, list[str]]:
    """Open a directory and list it, the first name last."""
    try:
        opened = os.open(name, _DIRECTORY, dir_fd=directory)
        return opened, prefix, sorted(os.listdir(opened), reverse=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, prefix) from error


def _row(path: str, name: str, directory: int) -> list[Any]:
    found = _found(name, directory)
    target = None
    if stat.S_ISLNK(found.st_mode):
        target = os.readlink(name, dir_fd=directory)
    return _described(path, found, target)


def _described(path: str, found: os.stat_result, target: str | None) -> list[Any]:
    """Describe a node as the host takes it."""
    return [
        path,
        found.st_mode,
        found.st_size,
        found.st_blocks,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        found.st_nlink,
        target,
    ]


def _found(name: str, directory: int) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _open_below(top: int, parts: Any, make: bool = False) -> int:
    """Open a directory, and with ``make`` also make those that are missing."""
    current = os.dup(top)
    for part in parts:
        if make:
            try:
                os.mkdir(part, 0o755, dir_fd=current)
            except FileExistsError:
                pass
        above = current
        try:
            current = os.open(part, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return current


def _open_regular(directory: int, name: str) -> int:
    """Open a regular file. Anything else is an error, and is not even opened."""
    found = _found(name, directory)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL, "no file")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory)


def _remove(name: str, directory: int) -> None:
    """Remove a file, a link, or a directory with everything in it."""
    if not stat.S_ISDIR(_found(name, directory).st_mode):
        os.unlink(name, dir_fd=directory)
        return
    import shutil
    import sys

    if sys.version_info >= (3, 11):
        shutil.rmtree(name, dir_fd=directory)
    else:
        # No link leads out: rmtree itself works along descriptors.
        shutil.rmtree("/proc/self/fd/{}/{}".format(directory, name))


def _set_attributes(file: int, node: dict[str, Any]) -> None:
    os.fchmod(file, node["mode"])
    if node["modified"] is not None:
        os.utime(file, ns=(node["modified"], node["modified"]))


# Records


def _records() -> Iterator[tuple[int, bytes]]:
    """Yield the host's records.

    Raises:
        HostGoneError: the host sends no more.
    """
    decoder = wire.FrameDecoder(wire.RECORDS)
    while True:
        data = os.read(0, wire.CHUNK)
        if not data:
            raise HostGoneError
        yield from decoder.feed(data)


def _send_json(kind: int, value: Any) -> None:
    _send(kind, json.dumps(value).encode("ascii"))


def _send(kind: int, payload: bytes) -> None:
    _write(1, wire.encode(kind, payload))


def _fail(error: OSError) -> None:
    path = error.filename if isinstance(error.filename, str) else ""
    _send_json(wire.FAILED, [error.errno or errno.EIO, path])


def _read_block(file: int, length: int) -> bytes:
    data = os.read(file, length)
    while data and len(data) < length:
        more = os.read(file, length - len(data))
        if not more:
            break
        data += more
    return data


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
