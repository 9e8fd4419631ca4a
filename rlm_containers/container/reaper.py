"""Removes what a sandbox leaves when its host process dies without cleaning up.

When this process ends, by SIGKILL or otherwise, the container notices that its pipe is closed and
ends. Its workspace on the host would stay. So every sandbox has a small shell that waits at the end
of another pipe. When the pipe is closed the shell cleans up, unless it was dismissed before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rlm_containers.state import owner_file
from runtimes import EngineCommand

# Arguments: tenths of a second to wait for the client; the workspace to remove, its owner file, and
# another directory to remove, each of which may be empty; the command line that removes the
# container.
#
# The shell has a session of its own, and ignores the signals of a terminal that closes before its
# work is done. It waits for the engine's client, which ends soon after its input is closed: an
# engine that is still making the container must finish first, or the container is removed before it
# exists. A guest that a cell has stopped does not end by itself, so the wait is limited and the
# container is removed. Under load the engine may take longer than that: then it is removed once
# more after the client has ended.
_SCRIPT = """\
trap '' HUP INT TERM
exec >/dev/null 2>&1
client=
while read -r word value; do
    case $word in
        done) exit 0 ;;
        client) client=$value ;;
    esac
done
tenths=$1
workspace=$2
owner=$3
also=$4
shift 4
there() { [ -n "$client" ] && { kill -0 "$client" || [ -e "/proc/$client" ]; }; }
await_client() {
    tries=$1
    while there && [ "$tries" -gt 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
}
[ -n "$client" ] || sleep 1
await_client "$tenths"
"$@"
if there; then
    await_client 600
    "$@"
fi
for directory in "$workspace" "$also"; do
    [ -n "$directory" ] || continue
    rm -rf -- "$directory" || {
        # A cell has taken the permissions off some directories.
        chmod -R u+rwX -- "$directory"
        rm -rf -- "$directory"
    }
done
# The owner file stays as long as any of the workspace does.
[ -z "$workspace" ] || [ -e "$workspace" ] || rm -f -- "$owner"
"""

#: Tenths of a second for a container to end by itself; a session's saves its state first.
_REAPER_WAIT = 30
_REAPER_WAIT_TO_SAVE = 100


class Reaper:
    """A process that cleans up after one sandbox if this process dies.

    Args:
        name: the container's name.
        workspace: the directory to remove; ``None`` if the workspace must stay.
        remove_container: the command line that removes the container.
        also: another directory to remove. It need not exist.
        lock: a descriptor that the reaper holds open until it has cleaned up.
    """

    def __init__(
        self,
        name: str,
        workspace: Path | None,
        remove_container: Sequence[str],
        *,
        also: Path | None = None,
        lock: int | None = None,
    ) -> None:
        shell = EngineCommand(("/bin/sh", "-c", _SCRIPT, "rlm-containers-reaper"))
        self._process = shell.hold(
            name,
            str(_REAPER_WAIT if workspace else _REAPER_WAIT_TO_SAVE),
            str(workspace or ""),
            str(owner_file(workspace) if workspace else ""),
            str(also or ""),
            *remove_container,
            keep_open=() if lock is None else (lock,),
        )
        self._process.close_output()  # it says nothing

    @property
    def pid(self) -> int:
        """The shell's process id."""
        return self._process.pid

    def watch(self, client: int) -> None:
        """Name the process that the reaper waits for before it removes the container.

        Args:
            client: the engine's client; once that is left, what ends with the container.
        """
        self._send(f"client {client}")

    def dismiss(self) -> None:
        """End the reaper: the sandbox has been cleaned up."""
        self._send("done")
        self._process.close_stdin()
        self._process.wait(5.0)
        self._process.close()

    def _send(self, word: str) -> None:
        try:
            os.write(self._process.stdin, f"{word}\n".encode())
        except BrokenPipeError:
            pass  # the reaper was killed
