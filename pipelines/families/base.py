"""What a family of diffusion models adds to the one loop of `pipelines/diffusion.py`.

A class with defaults, not a Protocol: most families differ from Stable Diffusion in two or three of these members, and
the table in `families/__init__.py` names the class of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...core.errors import NotFinite
from ...core.tensors import Array
from ...runtimes.base import Session
from ..prompt import PromptTokenizer

FloatArray = npt.NDArray[np.float32]
Rows = Mapping[str, Array]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is given besides latents and timestep: input name -> [n, ...], one row a picture.

    negative: the same for what shall not be drawn; None where guidance is off, and then a step costs half.
    notes: one line each for what of the prompts was not read.
    """

    positive: Rows
    negative: Rows | None = None
    notes: tuple[str, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether a step calls the denoiser for the negative prompt too."""
        return self.negative is not None

    def rows(self) -> Rows:
        """Everything for one call of the denoiser: the negative rows first, then the positive ones."""
        if self.negative is None:
            return self.positive
        return {name: np.concatenate([self.negative[name], value]) for name, value in self.positive.items()}


class Family:
    """A family's sessions, settings and tokenizers.

    classes: diffusers' pipeline classes that its models are saved as.
    denoiser, required, optional: names of components; optional ones are used where the artifact has them.
    sample, output: names of the denoiser's tensors.
    tokenizers: of the CLIP text encoders, component -> tokenizer; a user's own words are added there.
    steps, guidance: what a request that names none gets, where the manifest names none either; diffusers' defaults.
    draws_to_fill: whether diffusers' pipeline of an inpainting model encodes the picture, drawing numbers for it, even
        where nothing of it is left.

    Args:
        sessions: component -> session; one that is not open yet is opened when it is asked for.
        settings: the manifest's `pipeline` part.
        root: the artifact's folder, for the tokenizers.

    Raises:
        BadInput: a tokenizer's files are missing or damaged.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    denoiser: ClassVar[str] = "unet"
    sample: ClassVar[str] = "sample"
    output: ClassVar[str] = "out_sample"
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int] = 50
    guidance: ClassVar[float] = 7.5
    draws_to_fill: ClassVar[bool] = False

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions, self.settings, self.root = sessions, settings, root
        self.tokenizers: dict[str, PromptTokenizer] = {}

    def chunks(self, prompt: str) -> int:
        """How many chunks the CLIP encoders read a prompt in; 1 where there is none."""
        return max((len(t.encode(prompt).ids) for t in self.tokenizers.values()), default=1)

    @classmethod
    def open_tokenizer(cls, folder: Path) -> Any:
        """A tokenizer's folder, opened as this family reads it; the exporter asks too, to refuse what cannot be read.

        Raises:
            BadInput: a file is missing or damaged.
        """
        return PromptTokenizer.from_folder(folder)

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        """A manifest's `pipeline` part but for its family's name; see `diffusion_settings`.

        Args:
            configs: folder of a component in a diffusers model -> its config.json, such as "unet" and "vae".
            scheduler: scheduler_config.json. index: model_index.json.

        Raises:
            BadInput: the scheduler's class or options are not supported.
            KeyError, TypeError, ValueError, AttributeError: a config lacks an entry or has a wrong one.
        """
        raise NotImplementedError

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        """The text encoders' work, and all else that is the same at every step.

        Args:
            prompts: one a picture. negative: for all of them; not used where `guidance` is off.
            size: (height, width) in pixels.

        Raises:
            BadInput: a prompt that cannot be encoded.
        """
        raise NotImplementedError

    def denoiser_inputs(self, sample: FloatArray, timestep: float, rows: Rows) -> dict[str, Array]:
        """The tensors of one call.

        Args:
            sample: float32 [n, channels, h, w], scaled by the scheduler; twice the pictures where guidance is on.
            timestep: as the scheduler counts it, 0 to 1000.
            rows: of `Conditioning.rows`, [n, ...].
        """
        return {self.sample: sample, "timestep": np.asarray(timestep), **rows}

    def prediction(self, outputs: Mapping[str, Array], sample: FloatArray) -> FloatArray:
        """The denoiser's answer, float32 in the shape of the latents of `sample`."""
        return outputs[self.output].astype(np.float32, copy=False)

    def filling(self, mask: FloatArray, masked: FloatArray) -> FloatArray:
        """What an inpainting model sees beside the latents, float32 [n, more, h, w].

        Args:
            mask: float32 [n, 1, height, width] in pixels, 1 where something new is drawn.
            masked: latents of the picture without that part, [n, channels, h, w].
        """
        from ..pictures_in import to_latents  # brings Pillow, which no model needs to be opened

        return np.concatenate([to_latents(mask, masked.shape[2:]), masked], axis=1)

    def form(self, latents: FloatArray) -> FloatArray:
        """Latents, float32 [n, channels, h, w], in the form in which the denoiser takes them."""
        return latents

    def residual_behind(self, block: int, blocks: int, given: int) -> int | None:
        """Which of a ControlNet's residuals is added behind a block of the denoiser; None: nothing.

        Args:
            block: counted from 0, of `blocks` of one kind that take a residual.
            given: how many residuals of that kind the ControlNet gives, at least 1.
        """
        return block if block < given else None

    def sigmas(self, steps: int) -> FloatArray | None:
        """The noise levels that the family gives its scheduler, before any shift; None: the scheduler's own."""
        return None

    def tokens(self, size: tuple[int, int]) -> int | None:
        """How many tokens the denoiser sees of latents of (h, w); for schedulers that shift with it. None: no shift."""
        return None

    @classmethod
    def skipped_steps(cls, steps: int, strength: float) -> int:
        """How many of `steps` a picture that is changed with `strength`, 0 to 1, does not go through.

        As `get_timesteps` of diffusers' StableDiffusionImg2ImgPipeline counts.
        """
        return max(steps - min(int(steps * strength), steps), 0)


def check_finite(component: str, values: FloatArray, where: str) -> None:
    """Name the component that made NaN: pictures of it are black, and nobody knows why.

    Raises:
        NotFinite: `values` holds NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise NotFinite(
            f"{component} gives NaN or infinity {where}.",
            "Compute in float32: leave --precision out, or use the artifact that `vitrify export` made.",
        )


def as_inputs(session: Session, given: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors in the dtypes that a session wants, and a timestep in its rank.

    Graphs written by others may want the timestep as [1] or [batch].
    """
    ready = {}
    for name, value in given.items():
        spec = session.inputs[name]
        array = np.asarray(value, dtype=spec.dtype.value)
        if array.ndim == 0 and spec.shape:
            size = spec.shape[0]
            batch = max(len(v) for v in given.values() if np.ndim(v))
            array = np.full((size if isinstance(size, int) else batch,), array, dtype=spec.dtype.value)
        ready[name] = array
    return ready
