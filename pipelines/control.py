"""ControlNets inside a generation: from control pictures and the latents of each step to what the denoiser adds.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..core.errors import BadInput, UsageError
from ..core.tensors import Array, TensorSpec
from ..runtimes.base import Session
from .autoencoder import Autoencoder
from .families.base import Family, FloatArray, Rows, as_inputs, check_finite
from .pictures_in import Picture, pictures_of, resized, stacked
from .random import Generator

# names of the denoiser's inputs, but for the second with a number behind: of a UNet's levels and its middle,
DOWN, MIDDLE = "down_residual_", "mid_residual"
# and of a transformer's blocks; a ControlNet may give fewer of these
BLOCK, SINGLE = "block_residual_", "single_residual_"
MAX_STRENGTH = 100
_OWN = ("controlnet_cond", "conditioning_scale")  # what a ControlNet takes besides all that its denoiser does
_TEXT = {"encoder_hidden_states": "text of {} numbers a token", "pooled_projections": "a pooled text of {} numbers"}


class Ends(Protocol):
    """What of a session, or of a component that is not open, says which tensors go in and out."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...


class ControlNet:
    """A ControlNet, loaded: what `load` gives for its artifact.

    scale: pixels of its picture for one latent, along a side; None where it sees the picture as latents, encoded by the
    model's VAE: then `drawn` says whether these are sampled, and `shifted` whether the VAE's shift is taken off.
    pooled: its residuals are one number for each channel, and what shall not be drawn gets none of them.
    zeros: inputs that get zeros instead of what the denoiser gets.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions, self.settings, self.root = sessions, settings, root
        control = settings["control"]
        encoded = control.get("encoded")
        self.scale = int(control["scale"]) if encoded is None else None
        self.drawn, self.shifted = (bool(encoded[n]) for n in ("drawn", "shifted")) if encoded else (False, False)
        self.pooled, self.zeros = bool(control["pooled"]), tuple(control.get("zeros", ()))

    @property
    def session(self) -> Session:
        return self.sessions["controlnet"]

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it."""
        return {n: s.placement.to_json() for n, s in self.sessions.items()}

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


@dataclass(frozen=True)
class ControlUnit:
    """One ControlNet of a generation.

    picture: what it follows, resized to the size that is drawn; one for all pictures, or one for each.
    strength: what its residuals are multiplied by; 1 is what it was trained with, 0 nothing.
    start, end: the part of the steps, 0 to 1, in which it works.
    """

    picture: Picture
    net: ControlNet
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= MAX_STRENGTH:
            raise UsageError(
                f"The strength of a ControlNet is {self.strength}.", f"Give 0 to {MAX_STRENGTH}; 1 is usual."
            )
        if not 0 <= self.start < self.end <= 1:
            raise UsageError(
                f"A ControlNet works from {self.start} to {self.end} of the steps.",
                "Give two numbers from 0 to 1, the lower first.",
            )

    def to_json(self) -> dict[str, Any]:
        """For the parameters of a picture: which ControlNet, how strongly and when; not its picture."""
        return {"net": self.net.root.name, "strength": self.strength, "start": self.start, "end": self.end}

    def works(self, step: int, steps: int) -> bool:
        """Whether it does at step `step` of `steps`, from 0: where the whole step lies between start and end.

        As `controlnet_keep` of diffusers' StableDiffusionControlNetPipeline.
        """
        return self.strength > 0 and step / steps >= self.start and (step + 1) / steps <= self.end


def residual_inputs(denoiser: Ends) -> list[str]:
    """The denoiser's inputs that take a ControlNet's residuals; none where it was exported without --control."""
    return [name for name in denoiser.inputs if is_residual(name)]


def is_residual(name: str) -> bool:
    """Whether a denoiser's input of this name takes one of a ControlNet's residuals."""
    return name.startswith((DOWN, BLOCK, SINGLE)) or name == MIDDLE


def zero_residual(spec: TensorSpec) -> Array:
    """What such an input gets where no ControlNet works: one zero a channel, which the graph spreads over all of it."""
    return np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype.value)


class Controls:
    """The ControlNets of one generation; also where there are none.

    Args:
        units: in any order; their residuals are summed. pictures: of `prepared_pictures`, one array a unit.
        denoiser: what takes the residuals. family: says how denoisers are called and where residuals go.
        scale: pixels of the model's pictures for one latent, along a side.

    Raises:
        BadInput: the denoiser takes no residuals, or a ControlNet belongs to another kind of model.
    """

    def __init__(
        self,
        units: Sequence[ControlUnit],
        pictures: Sequence[FloatArray],
        denoiser: Session,
        family: Family,
        scale: int,
    ) -> None:
        names = residual_inputs(denoiser)
        if units and not names:
            raise BadInput("This model takes no ControlNet.", "Export it again, with --control.")
        for unit in units:
            _check_fits(unit.net, denoiser, scale)
        self.units, self.family = tuple(units), family
        self._pictures = pictures
        self._places = [_places(names, unit.net.session.outputs, family) for unit in units]
        self._none: dict[str, Array] = {name: zero_residual(denoiser.inputs[name]) for name in names}

    def residuals(
        self, sample: FloatArray, timestep: float, rows: Rows, step: int, steps: int, *, guided: bool
    ) -> dict[str, Array]:
        """The denoiser's further inputs for one of its calls.

        Args:
            sample: float32 [n, channels, h, w], scaled by the scheduler; once, also where guidance is on, and without
                the channels of an inpainting model.
            timestep: as the scheduler counts it. rows: of `Conditioning.rows`; the unwanted half first where guided.
            step, steps: how many calls are done, and how many there will be.
        """
        given: dict[str, list[FloatArray]] = {}
        for unit, picture, places in zip(self.units, self._pictures, self._places, strict=True):
            if not unit.works(step, steps):
                continue
            out = _run(unit, picture, self.family, sample, timestep, rows, guided)
            for name, place in places.items():
                given.setdefault(name, []).append(out[place])
        sums: dict[tuple[int, ...], Array] = {}  # blocks that get the same residuals share one array
        for parts in given.values():
            sums.setdefault(tuple(map(id, parts)), sum(parts[1:], parts[0]))
        found = self._none | {name: sums[tuple(map(id, parts))] for name, parts in given.items()}
        # those of a kind have one shape, also where no ControlNet gives some of them
        shapes = {_kind(name): found[name].shape for name in given}
        for name in [n for n in found if n not in given and _kind(n) in shapes]:
            found[name] = np.zeros(shapes[_kind(name)], np.float32)
        return found


def _places(names: Sequence[str], gives: Mapping[str, TensorSpec], family: Family) -> dict[str, str]:
    """The denoiser's input -> the ControlNet's output that goes there."""
    found = {name: name for name in names if not name.startswith((BLOCK, SINGLE))}
    for stem in (BLOCK, SINGLE):
        blocks = [name for name in names if name.startswith(stem)]
        given = sum(name.startswith(stem) for name in gives)
        for block, name in enumerate(blocks if given else ()):
            number = family.residual_behind(block, len(blocks), given)
            if number is not None:
                found[name] = f"{stem}{number}"
    return found


def _run(
    unit: ControlUnit,
    picture: FloatArray,
    family: Family,
    sample: FloatArray,
    timestep: float,
    rows: Rows,
    guided: bool,
) -> dict[str, FloatArray]:
    """One ControlNet's residuals, float32 [n or 2n, channels, h, w] or [n or 2n, tokens, width]."""
    both = guided and not unit.net.pooled
    wanted = {n: np.split(value, 2)[1] for n, value in rows.items()} if guided and not both else rows
    session = unit.net.session
    wanted = {n: np.zeros_like(value) if n in unit.net.zeros else value for n, value in wanted.items()}
    called = family.denoiser_inputs(np.concatenate([sample, sample]) if both else sample, timestep, wanted)
    given = {
        "controlnet_cond": np.concatenate([picture, picture]) if both else picture,
        "conditioning_scale": np.asarray(unit.strength),
        **{name: value for name, value in called.items() if name in session.inputs},
    }
    out: dict[str, FloatArray] = {}
    for name, array in session.run(as_inputs(session, given)).items():
        value = array.astype(np.float32, copy=False)
        check_finite("controlnet", value, "beside the denoiser")
        out[name] = np.concatenate([np.zeros_like(value), value]) if guided and not both else value
    return out


def misfit(net: Ends, net_scale: int | None, denoiser: Ends, scale: int) -> str | None:
    """Why a ControlNet was not made for this denoiser, by what both say of their tensors; None where it may have been.

    Args:
        net_scale: pixels of its picture for one latent; None where it sees it as the model's own latents.
        scale: pixels of the model's pictures for one latent.
    """
    names, gives, takes = residual_inputs(denoiser), net.outputs, denoiser.inputs
    kinds = {_kind(name): takes[name] for name in reversed(names)}
    wrong = [f"it gives no {name}" for name in names if name not in gives and not name.startswith((BLOCK, SINGLE))]
    wrong += [f"it gives {name}, which the model does not take" for name in gives if _kind(name) not in kinds]
    wrong += [
        f"its {name} has {_width(spec)} channels, the model's {_width(kinds[_kind(name)])}"
        for name, spec in gives.items()
        if _kind(name) in kinds and _width(spec) != _width(kinds[_kind(name)])
    ]
    wrong += [
        f"it also reads {n}, which the model does not have" for n in net.inputs if n not in takes and n not in _OWN
    ]
    for name, said in _TEXT.items():
        sizes = [ends.inputs[name].shape[-1] for ends in (net, denoiser) if name in ends.inputs]
        if len(set(sizes)) > 1:
            wrong.append(f"it reads {said.format(sizes[0])}, the model of {sizes[1]}")
    if net_scale is not None and net_scale != scale:
        wrong.append(f"its picture has {net_scale} pixels a latent, the model's {scale}")
    return wrong[0] if wrong else None


def _kind(name: str) -> str:
    """What of a residual's name is the same for all that are exchangeable: of a UNet's each is one of its own."""
    return next((stem for stem in (BLOCK, SINGLE) if name.startswith(stem)), name)


def _width(spec: TensorSpec) -> int:
    """The channels of a residual."""
    return next(d for d in spec.shape if isinstance(d, int))


def _check_fits(net: ControlNet, denoiser: Session, scale: int) -> None:
    """Refuse a ControlNet that was made for another kind of UNet, before anything is computed."""
    wrong = misfit(net.session, net.scale, denoiser, scale)
    if wrong is not None:
        raise BadInput(
            f"The ControlNet in {net.root} is not for this model: {wrong}.",
            "Use one that was trained for this model's version.",
        )


def prepared_pictures(
    units: Sequence[ControlUnit],
    size: tuple[int, int],
    count: int,
    family: Family,
    vae: Autoencoder,
    noise: Generator,
) -> list[FloatArray]:
    """The control pictures as each unit's ControlNet sees them: float32 [count, 3, height, width] in 0..1, or latents.

    Args:
        size: (height, width) in pixels. count: how many pictures are drawn.
        vae, family: encode pictures, and give the latents their form. noise: what samples are drawn with.

    Raises:
        BadInput: another number of control pictures, or the artifact has no encoder and one is needed.
    """
    made = []
    for unit in units:
        pixels, net = _prepared(unit.picture, size, count), unit.net
        if net.scale is None:
            pixels = np.float32(2) * pixels - np.float32(1)
            pixels = family.form(vae.encode(pixels, noise if net.drawn else None, shifted=net.shifted))
        made.append(pixels)
    return made


def _prepared(picture: Picture, size: tuple[int, int], count: int) -> FloatArray:
    """float32 [count, 3, height, width] in 0..1, as diffusers' control_image_processor makes it."""

    def scaled(one: Image.Image) -> FloatArray:
        pixels = np.asarray(resized(one, size).convert("RGB"), np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / np.float32(255))

    return stacked(pictures_of(picture, count, "control picture"), count, scaled)
