"""What a wrapped pipeline holds of its artifacts: the open sessions, and what runs which component."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.artifact import Artifact
from ..core.errors import BadArtifact, RuntimeFailure
from ..pipelines.components import Components
from ..pipelines.opening import open_components
from ..runtimes.base import Options, Session


class Opened:
    """One artifact's sessions, opened when they are first used, until `close`."""

    def __init__(self, artifact: Artifact, sessions: Components) -> None:
        self.artifact = artifact
        self._sessions: Components | None = sessions

    def session(self, name: str) -> Session:
        """The session of a component of the artifact.

        Raises:
            RuntimeFailure: it was closed.
            BadArtifact: the artifact has no such component.
            VitrifyError: it does not open.
        """
        if self._sessions is None:
            raise RuntimeFailure(
                f"The sessions of {self.artifact.root} are closed.", "Wrap the pipeline again: vitrify.bridge.wrap."
            )
        if name not in self._sessions:
            raise BadArtifact(
                f"{self.artifact.root} has no {name}, and this pipeline needs one.",
                "Export the model again, whole; or keep the part in PyTorch (components=...).",
            )
        return self._sessions[name]

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it, of those that were opened."""
        return {} if self._sessions is None else self._sessions.placement

    def close(self) -> None:
        if self._sessions is not None:
            self._sessions.close()
        self._sessions = None


class Vitrified:
    """A wrapped pipeline's `vitrify`: the artifacts that run its components.

    parts: the pipeline's component, such as "unet" -> the sessions that run it.
    """

    def __init__(self, parts: Mapping[str, Opened]) -> None:
        self.parts = dict(parts)

    @property
    def artifacts(self) -> list[Artifact]:
        """Each once, in the order of the components."""
        return list({id(part): part.artifact for part in self.parts.values()}.values())

    @property
    def artifact(self) -> Artifact:
        """The one that denoises, or, of a pipeline whose denoiser is not compiled, the first."""
        denoiser = self.parts.get("unet") or self.parts.get("transformer")
        return denoiser.artifact if denoiser is not None else self.artifacts[0]

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """The artifacts' components -> runtime, provider, device and precision, of those that were opened.

        The second of several ControlNets is "controlnet.1", as in the pipeline.
        """
        return {
            component if component.startswith(f"{name}.") else name: where
            for component, part in self.parts.items()
            for name, where in part.placement.items()
        }

    def replaced(self, parts: Mapping[str, Opened]) -> Vitrified:
        """The same with other sessions for some components; those that run none any more are closed."""
        new = Vitrified({**self.parts, **parts})
        kept = {id(part) for part in new.parts.values()}
        for part in self.parts.values():
            if id(part) not in kept:
                part.close()
        return new

    def close(self) -> None:
        """Free all sessions. The pipeline does not run from then on, nor does one that was made of its components."""
        for part in self.parts.values():
            part.close()


def open_parts(
    artifact: Artifact,
    names: Sequence[str],
    at_once: Sequence[str],
    device: str | None,
    options: Options | None,
    runtime: str | None,
    say: Callable[[str], None] | None,
) -> Opened:
    """The sessions of some of an artifact's components, those of `at_once` open.

    Raises:
        UsageError, DeviceError, VitrifyError: as `vitrify.load`.
    """
    components = [artifact.components[name] for name in names]
    sessions = open_components(components, at_once, device, options=options, runtime=runtime, say=say)
    return Opened(artifact, sessions)
