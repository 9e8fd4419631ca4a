"""Removes what is left when a process and its reaper die at once, as in a power failure.

Only what belonged to an owner that is certainly gone is removed, see :class:`Owner`. Sandboxes of
living processes, of other users and of other machines on the same engine are left alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rlm_containers.errors import ContainersError
from rlm_containers.state import (
    LABEL,
    Owner,
    SessionStore,
    owned_workspace,
    owner_file,
    passing_snapshots_directory,
    remove_tree,
    workspaces_directory,
)
from runtimes import ContainerRecord, NetworkRecord, Runtime
from runtimes.forks import ModuleLock
from runtimes.text import get_logger

logger = get_logger("rlm_containers")


@dataclass
class PrunedSandboxes:
    """The names of what was removed, or would be; and the errors for what could not be."""

    containers: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)
    errors: list[ContainersError] = field(default_factory=list)


def prune(
    runtimes: Iterable[Runtime] = (), *, dry_run: bool = False, everywhere: bool = True
) -> PrunedSandboxes:
    """Remove the containers, networks and workspaces whose owners are gone.

    Args:
        runtimes: the engines to look on.
        dry_run: only say what would be removed.
        everywhere: whether to remove also the workspaces of containers on other engines, and on
            engines that do not answer. Nobody needs these workspaces, but their owner files go
            too, by which the next start on such an engine would find the containers.

    Returns:
        What was removed. An engine that does not answer, or a directory that cannot be removed,
        adds an error to it, and the rest is still removed.
    """
    pruned = PrunedSandboxes()
    answered = set()
    for runtime in runtimes:
        try:
            _prune_engine(runtime, pruned, dry_run=dry_run)
            answered.add(repr(runtime))
        except ContainersError as error:
            pruned.errors.append(error)
    for name, engine in _gone_sandboxes():
        if everywhere or engine in answered:
            _prune_workspace(name, pruned, dry_run=dry_run)
    if not dry_run:
        SessionStore().sweep()
    return pruned


def _prune_engine(runtime: Runtime, pruned: PrunedSandboxes, *, dry_run: bool) -> None:
    containers = runtime.find({LABEL: ""})
    pruned.containers += _remove_gone(containers, runtime.remove, pruned, dry_run=dry_run)
    networks = runtime.find_networks({LABEL: ""})
    pruned.networks += _remove_gone(networks, runtime.remove_network, pruned, dry_run=dry_run)


def _remove_gone(
    found: Iterable[ContainerRecord | NetworkRecord],
    remove: Callable[[str], None],
    pruned: PrunedSandboxes,
    *,
    dry_run: bool,
) -> Iterator[str]:
    """Remove containers or networks whose owners are gone, and yield the names of those."""
    for record in found:
        if _is_gone(Owner.from_labels(record.labels)):
            try:
                if not dry_run:
                    remove(record.name)
                yield record.name
            except ContainersError as error:
                pruned.errors.append(error)


def _prune_workspace(name: str, pruned: PrunedSandboxes, *, dry_run: bool) -> None:
    path = workspaces_directory() / name
    try:
        if not dry_run:
            remove_tree(path)
            remove_tree(passing_snapshots_directory() / name)
            owner_file(path).unlink(missing_ok=True)
        pruned.workspaces.append(name)
    except ContainersError as error:
        pruned.errors.append(error)
    except OSError as error:
        logger.debug("%s: its owner file could not be removed: %s", name, error)


def _is_gone(owner: Owner | None) -> bool:
    return owner is not None and owner.is_gone()


def _gone_sandboxes() -> Iterator[tuple[str, str]]:
    """Find sandboxes whose owners are gone, by the owner files beside their workspaces.

    Yields:
        The sandbox's name, and its engine as the owner file names it.
    """
    try:
        paths = list(workspaces_directory().iterdir())
    except OSError:
        return
    for path in paths:
        if (workspace := owned_workspace(path)) is None:
            continue
        try:
            text = path.read_text()
        except (OSError, ValueError):
            continue
        if _is_gone(Owner.from_json(text)):
            yield workspace.name, str(json.loads(text).get("runtime"))


_pruned: set[str] = set()
_pruned_lock = ModuleLock()


def prune_once(runtime: Runtime) -> None:
    """Prune one engine in the background, at most once in the life of this process.

    The engine is asked only if an owner file names an owner that is gone. Otherwise this costs no
    more than listing one directory.
    """
    with _pruned_lock:
        if repr(runtime) in _pruned:
            return
        _pruned.add(repr(runtime))
    threading.Thread(target=_prune_gone, args=(runtime,), name="rlm-prune", daemon=True).start()


def _prune_gone(runtime: Runtime) -> None:
    try:
        if any(engine == repr(runtime) for _, engine in _gone_sandboxes()):
            pruned = prune([runtime], everywhere=False)
            logger.info(
                "removed what dead processes left: %d containers, %d networks, %d workspaces",
                *(len(names) for names in (pruned.containers, pruned.networks, pruned.workspaces)),
            )
            for error in pruned.errors:
                _warn(error)
    except Exception as error:
        # Nobody waits for this thread, and the next process tries again.
        _warn(error)


def _warn(error: Exception) -> None:
    logger.warning("not all that dead processes left could be removed: %s", error)
