"""A denoiser in two sessions: what the prompt alone decides is computed once, the rest in each step.

export/prompt_part.py cuts the graphs. Together they are one session that takes and gives what the whole graph does, so
whoever calls it needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..core.artifact import Component
from ..core.tensors import Array, TensorSpec, check_tensors
from ..runtimes.base import Placement, Session
from ..runtimes.low_rank import Override
from ..runtimes.stored import stored_weights
from .staying import Staying
from .step_cache import SHALLOW

PROMPT, STEP = "_prompt", "_step"  # behind the denoiser's name: the components of the two graphs
DETAIL = "prompt_part"  # in a component's details: {"of": the component that it was cut from}
# inputs that are the same in each step; a mask is too, but costs nothing
GIVEN = ("encoder_hidden_states", "text_embeds", "time_ids", "timestep_cond")
_KEPT_FOR = 32  # calls; within a bound for memory each row is called alone, and comes again once a step

Open = Callable[[Component, Mapping[str, Override]], Session]


def is_part(component: Component) -> bool:
    """Whether a component is one of two that another was cut into."""
    return DETAIL in component.details


def is_cut(component: Component) -> bool:
    """Whether a component is such a part, or a shallow graph: computed with some of another one's weights."""
    return is_part(component) or component.name.endswith(SHALLOW)


@dataclass(frozen=True)
class PromptParts:
    """The two components that a denoiser was cut into."""

    prompt: Component
    step: Component

    @classmethod
    def of(cls, name: str, components: Mapping[str, Component]) -> PromptParts | None:
        """Those of the component `name`; None where it was not cut."""
        prompt, step = components.get(name + PROMPT), components.get(name + STEP)
        return None if prompt is None or step is None else cls(prompt, step)

    def open(self, open_one: Open, changed: Mapping[str, Override]) -> PromptOnce:
        """Both sessions as one.

        Args:
            open_one: opens a component with changed weights. changed: those of the whole one, by name.

        Raises:
            VitrifyError: as `open_one`; then none stays open.
        """
        once = set(stored_weights(self.prompt)) if changed else set()
        always = set(stored_weights(self.step)) if changed else set()
        prompt = open_one(self.prompt, _Some(changed, once) if changed else {})
        try:
            # a name that neither has is refused by whoever opens the second
            step = open_one(self.step, _Some(changed, always | (set(changed) - once)) if changed else {})
        except BaseException:
            prompt.close()
            raise
        return PromptOnce(prompt, step)


class PromptOnce:
    """A session of the whole denoiser: keys and values of a prompt that comes again are those of its last call.

    A prompt is known again by its numbers. One that was not called with for a while is forgotten.
    """

    def __init__(self, prompt: Session, step: Session) -> None:
        self._prompt, self._step = prompt, step
        self._staying = Staying(step)  # on a device, keys and values that come again are not copied there again
        self._kept: list[_Kept] = []
        self._calls = 0
        self.inputs: Mapping[str, TensorSpec] = {
            **{name: spec for name, spec in step.inputs.items() if name not in prompt.outputs},
            **prompt.inputs,
        }

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._step.outputs

    @property
    def placement(self) -> Placement:
        return self._step.placement

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_tensors(self.inputs, tensors)
        rest = {name: value for name, value in tensors.items() if name not in self._prompt.inputs}
        return self._staying.run({**rest, **self._decided(tensors)})

    def close(self) -> None:
        self._kept = []
        self._prompt.close()
        self._step.close()

    def _decided(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the prompt decides: the same arrays for the same prompt."""
        given = {name: tensors[name] for name in self._prompt.inputs}
        self._calls += 1
        self._kept = [one for one in self._kept if self._calls - one.called <= _KEPT_FOR]
        found = next((one for one in self._kept if one.is_of(given)), None)
        if found is None:
            found = _Kept({n: np.array(v) for n, v in given.items()}, self._prompt.run(given), self._calls)
            self._kept.append(found)
        found.called = self._calls
        return found.decided


@dataclass
class _Kept:
    """given: copies, since their owner may write to the arrays. called: the number of the last call with them."""

    given: Mapping[str, Array]
    decided: Mapping[str, Array]
    called: int

    def is_of(self, tensors: Mapping[str, Array]) -> bool:
        return all(np.array_equal(value, tensors[name]) for name, value in self.given.items())


class _Some(Mapping[str, Override]):
    """Some of these changed weights; each is still computed when it is asked for."""

    def __init__(self, changed: Mapping[str, Override], names: set[str]) -> None:
        self._changed, self._names = changed, [name for name in changed if name in names]

    def __getitem__(self, name: str) -> Override:
        if name not in self._names:
            raise KeyError(name)
        return self._changed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the mixin's own would compute the weight
