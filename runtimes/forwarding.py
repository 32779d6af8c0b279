"""A session around another one, for those that watch what it is given or how long it takes."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.tensors import Array, TensorSpec
from .base import Placement, Session


class ForwardingSession:
    """Passes everything on; a subclass adds to `run`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._session.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._session.outputs

    @property
    def placement(self) -> Placement:
        return self._session.placement

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.run(tensors)

    def close(self) -> None:
        self._session.close()
