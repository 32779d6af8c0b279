"""Plugins around a generation: they see and may change the request, each step's latents, and the result.

A hook is named with its options, as `wildcards:folder=words`. Other packages add hooks with an entry point in
the group `vitrify.hooks` that names a subclass of `Hook`; an entry point can add a name, never replace one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ..core.errors import MissingDependency, UsageError, VitrifyError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .families.base import FloatArray
    from .generation import Generation
    from .result import GenerateResult, Step

ENTRY_POINTS = "vitrify.hooks"


class Hook:
    """What a plugin derives from; each member is optional.

    options: name of an option -> what it is, for messages. One instance serves one generation after another.

    Args:
        given: option -> its text.
    """

    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = dict(given)

    def before(self, request: Generation) -> Generation:
        """The request to do in place of this one."""
        return request

    def step(self, step: Step) -> FloatArray | None:
        """Latents to go on with in place of `step.latents`, of the same shape; None keeps those."""
        return None

    def after(self, result: GenerateResult) -> GenerateResult:
        """The result to give in place of this one."""
        return result


def _wildcards() -> type[Hook]:
    from .wildcards import Wildcards

    return Wildcards


HOOKS: dict[str, Callable[[], type[Hook]]] = {"wildcards": _wildcards}


def _added() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # looks into every distribution: only for a name that is not ours

    return entry_points(group=ENTRY_POINTS)


def hook_names() -> list[str]:
    """Every hook that can be named."""
    return [*HOOKS, *sorted({e.name for e in _added()} - HOOKS.keys())]


def hooks_of(given: Iterable[str]) -> list[Hook]:
    """The hooks that are named, in that order.

    Args:
        given: each as `name` or `name:option=value,option=value`.

    Raises:
        UsageError: there is no such hook or option, or a value that the hook refuses.
        MissingDependency: a plugin that does not import.
    """
    return [_opened(text) for text in given]


def _opened(text: str) -> Hook:
    name, _, rest = text.partition(":")
    kind = _kind(name)
    options = {}
    for part in filter(None, rest.split(",")):
        key, mark, value = part.partition("=")
        if not mark or key not in kind.options:
            known = ", ".join(f"{key} ({what})" for key, what in kind.options.items()) or "none"
            raise UsageError(f"The hook {name} has no option {part!r}.", f"Its options: {known}.")
        options[key] = value
    return kind(options)


def _kind(name: str) -> type[Hook]:
    if name in HOOKS:
        return HOOKS[name]()
    for entry in _added():
        if entry.name == name:
            try:
                kind: type[Hook] = entry.load()
            except VitrifyError:
                raise
            except Exception as exc:  # another package's code raises anything
                package = entry.dist.name if entry.dist else name
                raise MissingDependency(
                    f"The hook {name} does not import: {type(exc).__name__}: {exc}.",
                    f"pip install --force-reinstall {package}",
                ) from exc
            return kind
    raise UsageError(f"There is no hook {name!r}.", f"Hooks are {', '.join(hook_names())}.")
