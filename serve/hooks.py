"""The hooks that the server was started with, of which a client may choose."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import BadInput
from ..pipelines.hooks import Hook, hooks_of


class Hooks:
    """One instance of each, which serves one job after another.

    Args:
        given: each as `name` or `name:option=value`, see `hooks_of`.

    Raises:
        UsageError, BadInput, MissingDependency: as `hooks_of`.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self._named = [(text.partition(":")[0], hook) for text, hook in zip(given, hooks_of(given), strict=True)]

    @property
    def names(self) -> tuple[str, ...]:
        """Each once, in the server's order."""
        return tuple(dict.fromkeys(name for name, _ in self._named))

    def wanted(self, names: Sequence[str] | None) -> list[Hook]:
        """Those of these names, in the server's order; None: all.

        Raises:
            BadInput: there is none of a name, as of a job that waited while the server was started without it.
        """
        for name in names or ():
            if name not in self.names:
                raise BadInput(f"There is no hook {name!r}.", "Start the server with it, or ask for a job without it.")
        return [hook for name, hook in self._named if names is None or name in names]
