"""How a container reaches this host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HostRoute:
    """How a container reaches a TCP port of this host.

    Attributes:
        bind: the narrowest local address to listen on that the container can reach.
        address: the address by which the container reaches it, to be put behind the alias
            with ``--add-host``; ``None`` where the engine resolves the alias by itself.
        needs_container: whether ``bind`` exists only while a container runs, so that binding
            must wait until one does.
    """

    bind: str
    address: str | None
    needs_container: bool = False


@dataclass(frozen=True, kw_only=True)
class InternalNetwork:
    """A network of the engine's that leads to this host and nowhere else.

    Attributes:
        name: its name on the engine.
        route: how a container on it reaches this host.
    """

    name: str
    route: HostRoute
