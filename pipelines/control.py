"""ControlNets inside a generation: from control pictures and the latents of each step to what the UNet adds.

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
from .families.base import FloatArray, Rows, as_inputs, check_finite
from .pictures_in import Picture, pictures_of, resized, stacked

DOWN, MIDDLE = "down_residual_", "mid_residual"  # names of the denoiser's inputs; the first with a number behind it
MAX_STRENGTH = 100
_TEXT = "encoder_hidden_states"


class Ends(Protocol):
    """What of a session, or of a component that is not open, says which tensors go in and out."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...


class ControlNet:
    """A ControlNet, loaded: what `load` gives for its artifact.

    scale: pixels of its picture for one latent, along a side. pooled: its residuals are one number for each channel,
    and what shall not be drawn gets none of them.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions, self.settings, self.root = sessions, settings, root
        self.scale, self.pooled = int(settings["control"]["scale"]), bool(settings["control"]["pooled"])

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
    return name.startswith(DOWN) or name == MIDDLE


def zero_residual(spec: TensorSpec) -> Array:
    """What such an input gets where no ControlNet works: one zero a channel, which the graph spreads over all of it."""
    return np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype.value)


class Controls:
    """The ControlNets of one generation, their pictures ready; also where there are none.

    Args:
        units: in any order; their residuals are summed.
        denoiser: the UNet that takes the residuals.
        size: (height, width) in pixels. inner: the same of the latents. count: how many pictures are drawn.

    Raises:
        BadInput: the UNet takes no residuals, a ControlNet belongs to another kind of model, or there is another
            number of control pictures.
    """

    def __init__(
        self,
        units: Sequence[ControlUnit],
        denoiser: Session,
        size: tuple[int, int],
        inner: tuple[int, int],
        count: int,
    ) -> None:
        names = residual_inputs(denoiser)
        if units and not names:
            raise BadInput("This model takes no ControlNet.", "Export it again, with --control.")
        for unit in units:
            _check_fits(unit.net, denoiser, size[0] // inner[0])
        self.units = tuple(units)
        self._pictures = [_prepared(unit.picture, size, count) for unit in units]
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
        found = dict(self._none)
        for unit, picture in zip(self.units, self._pictures, strict=True):
            if not unit.works(step, steps):
                continue
            for name, value in _run(unit, picture, sample, timestep, rows, guided).items():
                found[name] = found[name] + value
        return found


def _run(
    unit: ControlUnit, picture: FloatArray, sample: FloatArray, timestep: float, rows: Rows, guided: bool
) -> dict[str, FloatArray]:
    """One ControlNet's residuals, float32 [n or 2n, channels, h, w]."""
    both = guided and not unit.net.pooled
    wanted = {n: np.split(value, 2)[1] for n, value in rows.items()} if guided and not both else rows
    session = unit.net.session
    given = {
        "sample": np.concatenate([sample, sample]) if both else sample,
        "timestep": np.asarray(timestep),
        "controlnet_cond": np.concatenate([picture, picture]) if both else picture,
        "conditioning_scale": np.asarray(unit.strength),
        **{name: value for name, value in wanted.items() if name in session.inputs},
    }
    out: dict[str, FloatArray] = {}
    for name, array in session.run(as_inputs(session, given)).items():
        value = array.astype(np.float32, copy=False)
        check_finite("controlnet", value, "beside the denoiser")
        out[name] = np.concatenate([np.zeros_like(value), value]) if guided and not both else value
    return out


def misfit(net: Ends, net_scale: int, denoiser: Ends, scale: int) -> str | None:
    """Why a ControlNet was not made for this UNet, by what both say of their tensors; None where it may have been.

    Args:
        net_scale: pixels of its picture for one latent. scale: pixels of the model's pictures for one latent.
    """
    names, gives, takes = residual_inputs(denoiser), net.outputs, denoiser.inputs
    wrong = [
        *(f"it gives no {name}" for name in names if name not in gives),
        *(f"it gives {name}, which the model does not take" for name in gives if name not in names),
        *(
            f"its {name} has {gives[name].shape[1]} channels, the model's {takes[name].shape[1]}"
            for name in names
            if name in gives and gives[name].shape[1] != takes[name].shape[1]
        ),
    ]
    text, own = net.inputs[_TEXT].shape[-1], takes[_TEXT].shape[-1]
    if text != own:
        wrong.append(f"it reads text of {text} numbers a token, the model of {own}")
    if net_scale != scale:
        wrong.append(f"its picture has {net_scale} pixels a latent, the model's {scale}")
    lacks = [n for n in net.inputs if n in ("text_embeds", "time_ids") and n not in takes]
    wrong += [f"it also reads {name}, which the model does not have" for name in lacks]
    return wrong[0] if wrong else None


def _check_fits(net: ControlNet, denoiser: Session, scale: int) -> None:
    """Refuse a ControlNet that was made for another kind of UNet, before anything is computed."""
    wrong = misfit(net.session, net.scale, denoiser, scale)
    if wrong is not None:
        raise BadInput(
            f"The ControlNet in {net.root} is not for this model: {wrong}.",
            "Use one that was trained for this model's version.",
        )


def _prepared(picture: Picture, size: tuple[int, int], count: int) -> FloatArray:
    """float32 [count, 3, height, width] in 0..1, as diffusers' control_image_processor makes it."""

    def scaled(one: Image.Image) -> FloatArray:
        pixels = np.asarray(resized(one, size).convert("RGB"), np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / np.float32(255))

    return stacked(pictures_of(picture, count, "control picture"), count, scaled)
