"""Removes what was left when a process and its reaper died at once: a machine that lost its power.

Only what is certainly nobody's any more, see :class:`Owner`: sandboxes of
living processes, of other users and of other machines on the same engine are left alone.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rlm_containers.errors import ContainersError
from rlm_containers.state import (
    LABEL,
    Owner,
    owned_workspace,
    owner_file,
    passing_snapshots_directory,
    remove_tree,
    workspaces_directory,
)
from runtimes import ContainerRecord, Runtime
from runtimes.base import NetworkRecord

logger = logging.getLogger("rlm_containers")


@dataclass
class PrunedSandboxes:
    """What was removed, or would be: the names of each, and what could not be."""

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
        everywhere: whether workspaces go whose containers were on another engine, or on one that
            does not answer. They are no use to anybody; but the records beside them, which go as
            well, are what has the next start on that engine look for the containers.

    Returns:
        What was removed. An engine that does not answer, or a directory that cannot be removed, is
        an error in it and keeps nothing else from being removed.
    """
    pruned = PrunedSandboxes()
    answered = set()
    for runtime in runtimes:
        try:
            _prune_engine(runtime, pruned, dry_run=dry_run)
            answered.add(repr(runtime))
        except ContainersError as error:
            pruned.errors.append(error)
    for name, engine in _records_of_the_gone():
        if everywhere or engine in answered:
            _prune_workspace(name, pruned, dry_run=dry_run)
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
    """Remove those whose owners are gone; the names of those that could be."""
    for record in found:
        if _is_nobodys(Owner.from_labels(record.labels)):
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
        logger.debug("%s: its record could not be removed: %s", name, error)


def _is_nobodys(owner: Owner | None) -> bool:
    return owner is not None and owner.is_gone()


def _records_of_the_gone() -> Iterator[tuple[str, str]]:
    """The sandboxes whose owners are gone, as the records beside their workspaces say.

    Yields:
        The sandbox's name and its engine, as the record has it.
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
        if _is_nobodys(Owner.from_json(text)):
            yield workspace.name, str(json.loads(text).get("runtime"))


_looked: set[str] = set()
_looked_lock = threading.Lock()


def prune_once(runtime: Runtime) -> None:
    """The same for one engine in the background, once in the life of this process for each.

    The engine is asked only if there is a record of somebody who is gone, so that mostly this costs
    a look into one directory.
    """
    with _looked_lock:
        if repr(runtime) in _looked:
            return
        _looked.add(repr(runtime))
    threading.Thread(target=_look, args=(runtime,), name="rlm-prune", daemon=True).start()


def _look(runtime: Runtime) -> None:
    try:
        if any(told == repr(runtime) for _, told in _records_of_the_gone()):
            pruned = prune([runtime], everywhere=False)
            logger.info(
                "removed what dead processes have left: %d containers, %d networks, %d workspaces",
                *(len(names) for names in (pruned.containers, pruned.networks, pruned.workspaces)),
            )
            for error in pruned.errors:
                _warn(error)
    except Exception as error:
        # Nobody waits for this, and what could not be removed stays for the next time.
        _warn(error)


def _warn(error: Exception) -> None:
    logger.warning("what dead processes have left could not all be removed: %s", error)
