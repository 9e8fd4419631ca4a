"""``ContainerSandboxClient``: agents of the OpenAI Agents SDK and their sessions."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.state import SessionStore, sessions_directory
from tests.agents.conftest import RunPage
from tests.support import Engine, assert_gone, on_ci

if not on_ci():  # on CI it must be installed
    pytest.importorskip("agents.sandbox", reason="pip install 'rlm-containers[openai-agents]'")

from agents import set_tracing_disabled
from agents.sandbox import (
    ExecTimeoutError,
    ExecTransportError,
    ExposedPortUnavailableError,
    LocalSnapshotSpec,
    Manifest,
    SandboxPathGrant,
    User,
    WorkspaceArchiveReadError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.entries import Dir, File, InContainerMountStrategy, RcloneMountPattern, S3Mount
from agents.sandbox.errors import ConfigurationError, InvalidManifestPathError, WorkspaceStartError
from agents.sandbox.session import SandboxSession
from agents.testing import ScriptedModel, assistant_message, function_call

from rlm_containers.integrations.openai_agents import (
    ContainerSandboxClient,
    ContainerSandboxClientOptions,
    ContainerSandboxSession,
)
from rlm_containers.integrations.openai_agents.archive import check_members

Work = Callable[[SandboxSession], Awaitable[None]]


@pytest.fixture(autouse=True)
def configured(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sandboxes that do not say it use the engine under test."""
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", engine.image())
    set_tracing_disabled(True)  # it would send traces


def run(work: Work, **arguments: Any) -> None:
    """Await work in a session, and delete that."""

    async def main() -> None:
        client = ContainerSandboxClient()
        session = await client.create(**arguments)
        try:
            async with session:
                await work(session)
        finally:
            await client.delete(session)

    asyncio.run(main())


async def sh(session: SandboxSession, command: str) -> str:
    done = await session.exec(command)
    assert done.ok(), done.stderr
    return done.stdout.decode()


async def text(session: SandboxSession, path: str) -> str:
    content: bytes = (await session.read(Path(path))).read()
    return content.decode()


def test_the_how_to(engine: Engine, run_how_to: RunPage) -> None:
    command = "awk -F, '$1 == \"apple\" {n += $2} END {print n}' sales.csv"
    model = ScriptedModel(
        [
            [function_call("exec_command", {"cmd": command}, call_id="1")],
            [assistant_message("8 apples were sold.")],
        ]
    )
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # run_sync() would leave one of its own open
    with contextlib.closing(loop):
        run_how_to("openai-agents", model=model)
    model.assert_complete()
    last = model.calls[-1].input
    assert isinstance(last, list)
    assert "8\n" in str(last[-1]["output"])
    assert SessionStore().names() == []
    assert_gone(engine, str(sessions_directory()))


def test_commands_and_files(engine: Engine) -> None:
    async def work(session: SandboxSession) -> None:
        assert await session.running()
        assert await sh(session, "cat a.txt sub/b.txt; echo $GREETING; pwd") == (
            "one\ntwo\nhello\n/workspace\n"
        )
        await session.write(Path("new/c.txt"), io.BytesIO(b"three\n"))
        assert await text(session, "/workspace/new/c.txt") == "three\n"
        assert await session.read_bounded(Path("new/c.txt"), max_bytes=2) == b"th"
        await session.mv("new/c.txt", "new/d.txt")
        names = [Path(entry.path).name for entry in await session.ls("new")]
        assert names == ["d.txt"]
        await session.mkdir("x/y", parents=True)
        await session.rm("x", recursive=True)
        assert await sh(session, "ls -d x new 2>/dev/null; true") == "new\n"
        await session.apply_patch(
            [
                {"type": "create_file", "path": "patched/e.txt", "diff": "+one\n+two\n"},
                {"type": "update_file", "path": "patched/e.txt", "diff": "@@\n one\n-two\n+2\n"},
                {"type": "delete_file", "path": "new/d.txt"},
            ]
        )
        assert await sh(session, "cat patched/e.txt; ls new") == "one\n2"
        with pytest.raises(WorkspaceReadNotFoundError):
            await session.read(Path("missing"))
        with pytest.raises(InvalidManifestPathError):
            await session.read(Path("/etc/passwd"))
        await sh(session, "ln -s /etc/passwd secret")
        with pytest.raises(InvalidManifestPathError):
            await session.read(Path("secret"))
        with pytest.raises(WorkspaceArchiveReadError):
            await session.read(Path("sub"))
        with pytest.raises(WorkspaceArchiveWriteError):
            await session.write(Path("sub"), io.BytesIO(b""))
        failed = await session.exec("echo out; echo err >&2; exit 3")
        assert (failed.stdout, failed.stderr, failed.exit_code) == (b"out\n", b"err\n", 3)
        with pytest.raises(ExecTimeoutError):
            await session.exec("sleep 60", timeout=0.2)

    entries: dict[str | Path, Any] = {
        "a.txt": File(content=b"one\n"),
        "sub": Dir(children={"b.txt": File(content=b"two\n")}),
    }
    manifest = Manifest.model_validate({"environment": {"value": {"GREETING": "hello"}}})
    run(work, manifest=manifest.model_copy(update={"entries": entries}))


def test_a_snapshot_goes_to_another_session(engine: Engine, tmp_path: Path) -> None:
    client = ContainerSandboxClient()
    spec = LocalSnapshotSpec(base_path=tmp_path)

    async def main() -> None:
        first = await client.create(snapshot=spec)
        async with first:
            await sh(
                first,
                "mkdir -p d/e; echo deep > d/e/f; echo x > run.sh; chmod 755 run.sh; "
                "ln -s /workspace/d/e/f inside; ln -s /usr/bin/env outside",
            )
        await client.delete(first)  # what is on this host; the snapshot stays
        (archive,) = tmp_path.glob("*.tar")
        with tarfile.open(archive) as opened:
            names = sorted(opened.getnames())
            assert opened.getmember("inside").linkname == "d/e/f"
        assert names == [".", "d", "d/e", "d/e/f", "inside", "outside", "run.sh"]

        second = await client.resume(first.state)
        async with second:
            assert await sh(second, "cat inside; stat -c %a run.sh; readlink outside") == (
                "deep\n755\n/usr/bin/env\n"
            )
            # With a snapshot that the workspace does not equal any more, that is restored.
            second.state.snapshot_fingerprint = None
            inner = second._inner
            assert isinstance(inner, ContainerSandboxSession)
            await sh(second, "rm run.sh; echo more > g")
            await inner._restore_snapshot_into_workspace_on_resume()
            assert await sh(second, "ls") == "d\ninside\noutside\nrun.sh\n"
            assert inner.box.execute("print(6 * 7)").stdout == "42\n"
            for archive_of in ("../out", "state.dill"):
                with pytest.raises(WorkspaceArchiveWriteError):
                    await inner.hydrate_workspace(_tar(archive_of))
        await client.delete(second)

    asyncio.run(main())


def test_a_sparse_file_does_not_fill_the_disk(engine: Engine) -> None:
    async def work(session: SandboxSession) -> None:
        await sh(session, "truncate -s 8000000000000 large")
        with pytest.raises(WorkspaceArchiveReadError) as raised:
            await session.persist_workspace()
        assert "no room for an archive" in str(raised.value.cause)

    run(work)


def members(*infos: tarfile.TarInfo, **pax: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return made.getvalue()


def info(name: str = "workspace/file", size: int = 3, **attributes: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


def polyglot() -> bytes:
    """Return a gzip file that is a member of an archive, too, as far as its header goes."""
    block = info("\x1f\x8b\x08").tobuf(tarfile.GNU_FORMAT, "latin-1", "strict")
    return block + bytes(1024)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (gzip.compress(members(info())), "compressed"),
        (polyglot(), "compressed"),
        (bz2.compress(members(info())), "compressed"),
        (lzma.compress(members(info())), "compressed"),
        (info(type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT), "sparse"),
        (members(info(pax_headers={"GNU.sparse.realsize": "9" * 15})), "sparse"),
        (members(info(pax_headers={"size": "9" * 15})), "sparse"),
        (members(info(pax_headers={"comment": "x" * 70_000_000})), "headers are too long"),
        (members(*(info(f"workspace/{n}") for n in range(30))), "more than 20 members"),
        (b"hello".ljust(512), "bad checksum"),
    ],
    ids=range(10),
)
def test_archives_that_would_fill_this_host(archive: bytes, message: str) -> None:
    with pytest.raises(tarfile.TarError, match=message):
        check_members(io.BytesIO(archive), 20)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_as_tar_writes_them(form: int) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        tar.addfile(info("workspace", size=0, type=tarfile.DIRTYPE))
        tar.addfile(info("workspace/" + "long/" * 15 + "size=1", size=600), io.BytesIO(bytes(600)))
        tar.addfile(info("workspace/link", size=0, type=tarfile.SYMTYPE, linkname="long"))
    made.seek(0)
    check_members(made, 20)


def _tar(name: str) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    made.seek(0)
    return made


def test_a_session_whose_container_is_gone(engine: Engine) -> None:
    client = ContainerSandboxClient()

    async def main() -> None:
        lost = await client.create()
        await lost.start()
        inner = lost._inner
        assert isinstance(inner, ContainerSandboxSession)
        await sh(lost, "echo kept > a.txt")
        engine.run("rm", "--force", inner.box.name)
        with pytest.raises(ExecTransportError):
            await lost.exec("true")
        assert not await lost.running()
        await lost.shutdown()
        again = await client.resume(lost.state)
        async with again:
            assert await text(again, "a.txt") == "kept\n"
        await client.delete(again)
        await client.delete(again)  # once more does no harm
        assert SessionStore().names() == []
        with pytest.raises(WorkspaceStartError, match="/no/such/podman"):
            options = ContainerSandboxClientOptions(runtime="/no/such/podman")
            await (await client.create(options=options)).start()

    asyncio.run(main())


def test_what_it_does_not_have(engine: Engine) -> None:
    async def work(session: SandboxSession) -> None:
        for call in (
            session.exec("id", user="nobody"),
            session.read(Path("a"), user=User(name="nobody")),
            session.write(Path("a"), io.BytesIO(b""), user="nobody"),
        ):
            with pytest.raises(ConfigurationError, match="one user"):
                await call
        with pytest.raises(ExposedPortUnavailableError):
            await session.resolve_exposed_port(8000)
        assert not session.supports_pty()

    run(work)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"root": "/home/me"}, "must be /workspace or below"),
        ({"users": [User(name="me")]}, "one user"),
        ({"extra_path_grants": (SandboxPathGrant(path="/data", host_path="/tmp"),)}, "host_path"),
        (
            {
                "entries": {
                    "bucket": S3Mount(
                        bucket="b",
                        mount_strategy=InContainerMountStrategy(pattern=RcloneMountPattern()),
                    )
                }
            },
            "mount",
        ),
    ],
    ids=["root", "users", "host_path", "mount"],
)
def test_manifests_that_ask_for_what_there_is_not(manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        asyncio.run(ContainerSandboxClient().create(manifest=Manifest(**manifest)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imag": "x"}, "Did you mean 'image'"),
        ({"env": {"KEY": "secret"}}, "environment of the manifest"),
        ({"session": "work"}, "resume"),
        ({"exposed_ports": (8000,)}, "reaches no port"),
    ],
)
def test_options_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        ContainerSandboxClientOptions(**arguments)
    assert "secret" not in str(raised.value)
