"""Removes what a sandbox leaves when its host process dies without a chance to clean up.

When this process ends, by SIGKILL or whatever, the container notices that its pipe is closed and
goes by itself. Its workspace on the host would stay. So every sandbox has a small shell waiting at
the end of another pipe: told that all is well it goes away, otherwise it cleans up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rlm_containers.state import owner_file
from runtimes.command import EngineCommand

# Arguments: tenths of a second to wait for the client; the workspace to remove, its record, and
# another directory to remove, or nothing in their places; and the command line that removes the
# container. In a session of its own already; a terminal that closes must not end it before its work
# is done. An engine that is still making the container must finish that first, else it is removed
# before it exists: the client ends soon after, for its input is closed as well. A guest that a cell
# has stopped does not end by itself, so it is removed after three seconds; an engine under load may
# take longer than that, so the container is removed again when the client has ended.
_SCRIPT = """\
trap '' HUP INT TERM
client=
while read -r word value; do
    case $word in
        done) exit 0 ;;
        client) client=$value ;;
    esac
done
patience=$1
workspace=$2
record=$3
also=$4
shift 4
there() { [ -n "$client" ] && kill -0 "$client" 2>/dev/null; }
await_client() {
    tries=$1
    while there && [ "$tries" -gt 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
}
[ -n "$client" ] || sleep 1
await_client "$patience"
"$@" >/dev/null 2>&1
if there; then
    await_client 600
    "$@" >/dev/null 2>&1
fi
for directory in "$workspace" "$also"; do
    [ -n "$directory" ] || continue
    rm -rf -- "$directory" 2>/dev/null || {
        # A cell has locked some of its directories.
        chmod -R u+rwX -- "$directory"
        rm -rf -- "$directory"
    }
done
# What says whose it was: as long as there is anything of it.
[ -z "$workspace" ] || [ -e "$workspace" ] || rm -f -- "$record"
"""

#: Tenths of a second for a container to end by itself; more where it saves its state first.
_PATIENCE = 30
_PATIENCE_TO_SAVE = 100


class Reaper:
    """The watcher of one sandbox.

    Args:
        name: the container's name.
        workspace: the directory to remove; ``None`` for one that stays.
        remove_container: the command line that removes the container.
        also: another directory to remove, which need not be there.
        lock: a descriptor to hold until all that is done.
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
            str(_PATIENCE if workspace else _PATIENCE_TO_SAVE),
            str(workspace or ""),
            str(owner_file(workspace) if workspace else ""),
            str(also or ""),
            *remove_container,
            keep_open=() if lock is None else (lock,),
        )

    @property
    def pid(self) -> int:
        """The shell's process id."""
        return self._process.pid

    def watch(self, client: int) -> None:
        """Name the process that holds the container, to be waited for before the cleaning up."""
        self._tell(f"client {client}")

    def dismiss(self) -> None:
        """Send it away: the sandbox has been cleaned up."""
        self._tell("done")
        self._process.close_stdin()
        self._process.wait(5.0)
        self._process.close()

    def _tell(self, word: str) -> None:
        try:
            os.write(self._process.stdin, f"{word}\n".encode())
        except BrokenPipeError:
            pass  # somebody killed it
