"""The SDK's ``BaseSandboxClient``: makes sessions in containers, resumes and deletes them."""

from __future__ import annotations

import uuid

from agents.sandbox.manifest import Manifest
from agents.sandbox.session import SandboxSession, SandboxSessionState
from agents.sandbox.session.dependencies import Dependencies
from agents.sandbox.session.manager import Instrumentation
from agents.sandbox.session.sandbox_client import BaseSandboxClient
from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot

from rlm_containers.errors import SessionNotFoundError
from rlm_containers.integrations.openai_agents.session import ContainerSandboxSession
from rlm_containers.integrations.openai_agents.state import (
    BACKEND,
    ContainerSandboxClientOptions,
    ContainerSandboxSessionState,
    check_manifest,
)
from rlm_containers.sandbox import call_in_thread
from rlm_containers.state import SessionStore


class ContainerSandboxClient(BaseSandboxClient[ContainerSandboxClientOptions | None]):
    """Makes sandbox sessions in containers.

    The files of a session outlive its container: after ``aclose()``, or when this process is
    killed, :meth:`resume` goes on with them in a new one. :meth:`delete` removes them.

    Args:
        instrumentation: as for the SDK's own clients.
        dependencies: as for the SDK's own clients.
    """

    backend_id = BACKEND
    supports_default_options = True

    def __init__(
        self,
        *,
        instrumentation: Instrumentation | None = None,
        dependencies: Dependencies | None = None,
    ) -> None:
        super().__init__()
        self._instrumentation = instrumentation or Instrumentation()
        self._dependencies = dependencies

    async def create(
        self,
        *,
        snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None,
        options: ContainerSandboxClientOptions | None = None,
    ) -> SandboxSession:
        """Make a session. Its container starts with it.

        Args:
            snapshot: where to keep its workspace when it is closed; ``None``: nowhere but on this
                host.
            manifest: what its workspace holds at first.
            options: its sandbox's; ``None`` for those of the configuration.

        Raises:
            ConfigurationError: the manifest asks for what these sandboxes do not have.
        """
        manifest = Manifest() if manifest is None else manifest
        self._validate_manifest_for_create(manifest)
        check_manifest(manifest)
        session_id = uuid.uuid4()
        state = ContainerSandboxSessionState(
            session_id=session_id,
            manifest=manifest,
            snapshot=resolve_snapshot(snapshot, str(session_id)),
            options=options.arguments if options is not None else {},
        )
        return self._session(ContainerSandboxSession(state))

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        """Go on with a session, from its files on this host, else from its snapshot.

        Raises:
            ConfigurationError: the manifest asks for what these sandboxes do not have.
        """
        state.assert_path_grants_rebound()
        state = _own(state)
        check_manifest(state.manifest)
        session = ContainerSandboxSession(state)
        kept = await call_in_thread(lambda: state.name in SessionStore().names())
        if not kept:
            state.workspace_root_ready = False
        session._set_start_state_preserved(kept, system=False)
        return self._session(session)

    async def delete(self, session: SandboxSession) -> SandboxSession:
        """End a session and remove its files from this host. Snapshots of the SDK stay."""
        state = _own(session.state)
        await session.shutdown()
        try:
            await call_in_thread(lambda: SessionStore().remove(state.name))
        except SessionNotFoundError:
            pass  # it was never started
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        """Return the state of a session from JSON."""
        return self._deserialize_session_state_payload(payload, ContainerSandboxSessionState)

    def _session(self, inner: ContainerSandboxSession) -> SandboxSession:
        return self._wrap_session(inner, instrumentation=self._instrumentation)


def _own(state: SandboxSessionState) -> ContainerSandboxSessionState:
    if not isinstance(state, ContainerSandboxSessionState):
        raise TypeError(f"This is no session of {BACKEND}, but of {state.type}.")
    return state
