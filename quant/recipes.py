"""Recipes: precision as data. Each has an id that rebuilds it and survives JSON.

An id is a name with options that differ from its defaults: `int4-weights`, `int4-weights:group=32`,
`int8-static:keep=mid_block.*`. What a recipe means is decided here; each target applies it with the library made for
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ..core.errors import UsageError

# Layers that lose much and weigh little, by a part of their name in the state dict: time and size embeddings, the
# first and last layers, shortcuts. Found by others for Stable Diffusion, SDXL, SD3 and Flux.
SENSITIVE = (
    *("time_embedding", "time_emb_proj", "conv_in", "conv_out", "conv_shortcut", "add_embedding", "pos_embed"),
    *("time_text_embed", "context_embedder", "x_embedder", "norm_out", "embeddings", "classifier"),
)
GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    """What a component's numbers are made of.

    weights, activations: the dtypes that are stored and computed with; activations "float32+int8" are mixed.
    components: those that it changes; the others keep float32. Empty: all.
    group: weights that share a scale along the input channels; 0: one scale an output channel.
    symmetric: zero is stored as zero; asymmetric weights have a zero point, which TensorRT refuses.
    convs: what convolutions are stored in where it is not `weights`: int8 beside int4 linear layers loses less.
    keep: patterns of layers that stay in high precision besides `SENSITIVE`; `*` stands for anything.
    calibrated: it needs recorded inputs. samples: how many of them.
    smooth: SmoothQuant's alpha for linear layers (Xiao et al., 2022); 0: off.
    min_psnr: dB that pictures of it must reach beside float32's, averaged; below, nothing is published.
    min_agreement: share of pictures whose best label must stay the same.
    buys: what it is for.
    """

    id: str
    weights: str
    activations: str
    components: tuple[str, ...] = ()
    group: int = 0
    symmetric: bool = True
    convs: str = ""
    keep: tuple[str, ...] = ()
    calibrated: bool = False
    samples: int = 0
    smooth: float = 0.0
    min_psnr: float = 50.0
    min_agreement: float = 1.0
    buys: str = ""

    @property
    def name(self) -> str:
        return self.id.partition(":")[0]

    @property
    def lossless(self) -> bool:
        return self.weights == "float32" and self.activations == "float32"

    def applies_to(self, component: str) -> bool:
        return not self.lossless and (not self.components or component in self.components)

    def kept(self, layer: str) -> bool:
        """Whether the layer of this name stays in high precision."""
        return any(part in layer for part in SENSITIVE) or any(fnmatchcase(layer, f"*{p}*") for p in self.keep)

    def to_json(self) -> dict[str, Any]:
        return {"recipe": self.id, "weights": self.weights, "activations": self.activations}


# a VAE loses most and its weights are few; its encoder's float16 gives black images elsewhere
_MAIN = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "model", "controlnet")
DENOISERS = ("unet", "transformer", "model")

RECIPES = {
    r.id: r
    for r in (
        Recipe("fp32", "float32", "float32", buys="the source's own numbers"),
        Recipe(
            "int8-weights", "int8", "float32", _MAIN, min_psnr=40, min_agreement=0.99,
            buys="a quarter of float32's disk, and less memory",
        ),
        Recipe(
            "int4-weights", "int4", "float32", _MAIN, group=64, min_psnr=25, min_agreement=0.95,
            buys="a sixth of float32's disk, and less memory",
        ),
        Recipe(
            "nf4-weights", "nf4", "float32", _MAIN, group=64, min_psnr=25, min_agreement=0.95,
            buys="as int4-weights, with levels that fit normal weights better",
        ),
        Recipe(
            "fp8", "float8e4m3", "float32", _MAIN, min_psnr=35, min_agreement=0.99,
            buys="a quarter of float32's disk on GPUs that have fp8; int8-weights loses less",
        ),
        Recipe(
            "int8-dynamic", "int8", "int8-dynamic", ("model", "text_encoder"), min_psnr=25, min_agreement=0.99,
            buys="time on processors with int8 dot products; no calibration; linear layers only",
        ),
        Recipe(
            "int8-static", "int8", "int8", DENOISERS, calibrated=True, samples=64, min_psnr=25,
            min_agreement=0.99,
            buys="time where there are int8 dot products, memory, a quarter of float32's disk; needs calibration",
        ),
        Recipe(
            "int8-hybrid", "int8", "int8+float32", DENOISERS, calibrated=True, samples=64, min_psnr=25,
            min_agreement=0.99,
            buys="between int8-weights and int8-static: linear layers keep float activations",
        ),
    )
}  # fmt: skip

_OPTIONS = {"group": int, "symmetric": None, "convs": None, "keep": None, "samples": int, "smooth": float}
# those that change something in a recipe; the others would be said in its id and do nothing
_TAKES = {
    "fp32": (),
    "int8-weights": ("group", "symmetric", "keep"),
    "int4-weights": ("group", "symmetric", "convs", "keep"),
    "nf4-weights": ("group", "keep"),
    "fp8": ("keep",),
    "int8-dynamic": ("keep",),
    "int8-static": ("keep", "samples", "smooth"),
    "int8-hybrid": ("group", "symmetric", "keep", "samples"),
}


def recipe(id: str) -> Recipe:
    """The recipe with this id: a name, or a name with options as in `int4-weights:group=32,keep=mid_block.*`.

    Raises:
        UsageError: there is none, or an option does not fit; names those that exist.
    """
    name, _, options = id.partition(":")
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}.", f"Recipes are {', '.join(RECIPES)}.")
    base = made = RECIPES[name]
    for option in options.split(",") if options else []:
        key, given, value = option.partition("=")
        if not given or key not in _OPTIONS:
            raise UsageError(
                f"{option!r} is no option of a recipe.", f"Options are {', '.join(_OPTIONS)}, as in group=32."
            )
        if key not in _TAKES[name]:
            takes = ", ".join(_TAKES[name]) or "none"
            raise UsageError(f"{name} has no option {key}.", f"Leave it out; the options of {name}: {takes}.")
        made = replace(made, **{key: _value(made, key, value)})
    if made.group not in GROUPS and (made.group or base.group):  # without groups, 4 bits would become 8 unnoticed
        raise UsageError(f"A group of {made.group} is not possible.", f"Groups are {', '.join(map(str, GROUPS))}.")
    return replace(made, id=_id(base, made))


def _value(made: Recipe, key: str, value: str) -> Any:
    if key == "keep":
        return tuple(sorted({*made.keep, *filter(None, re.split(r"[+ ]", value))}))
    if key == "convs":
        if value not in ("int8", "int4"):
            raise UsageError(f"convs is {value!r}.", "Give convs=int8 or convs=int4.")
        return value
    if key == "symmetric":
        if value not in ("yes", "no", "true", "false"):
            raise UsageError(f"symmetric is {value!r}.", "Give symmetric=yes or symmetric=no.")
        return value in ("yes", "true")
    try:
        number = _OPTIONS[key](value)  # type: ignore[misc]
    except ValueError as exc:
        raise UsageError(f"{key} is {value!r}.", f"Give a number, as in {key}={getattr(made, key)}.") from exc
    if number < 0 or (key == "samples" and number < 1):
        raise UsageError(f"{key} is {value}.", "Give a larger number.")
    if key == "smooth" and not number <= 1:  # NaN too
        raise UsageError(f"smooth is {value}.", "Give a number from 0 to 1.")
    return number


def _id(base: Recipe, made: Recipe) -> str:
    """The name with every option that is not the name's own."""
    said = []
    for field in fields(Recipe):
        value = getattr(made, field.name)
        if field.name in _OPTIONS and value != getattr(base, field.name):
            words = {True: "yes", False: "no"} if field.name == "symmetric" else {}
            said.append(f"{field.name}={'+'.join(value) if field.name == 'keep' else words.get(value, value)}")
    return base.id + (":" + ",".join(said) if said else "")
