"""Which recipe runs on which runtime, component by component, and what it buys: asked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..core.errors import UsageError
from ..core.machine import cpu_info
from .recipes import DENOISERS, RECIPES, Recipe

TARGETS = ("onnx", "openvino", "torch", "aotinductor", "tensorrt-rtx", "tensorrt")
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp")

# recipe -> target -> why not; what is not here runs
_REFUSED: dict[str, dict[str, str]] = {
    "nf4-weights": {
        "onnx": "ONNX has no nf4 type: use int4-weights, or --to openvino.",
        "tensorrt-rtx": "TensorRT has no nf4 type: use int4-weights.",
        "tensorrt": "TensorRT has no nf4 type: use int4-weights.",
    },
    "fp8": {
        "onnx": "ONNX Runtime computes with no float8, so it would gain nothing there: use int8-weights.",
        "openvino": "OpenVINO computes with no float8 on a CPU, so it would gain nothing there: use int8-weights.",
        "torch": "PyTorch computes over int8 weights in float32 alone: use int8-weights.",
    },
    "int8-dynamic": {
        "openvino": "OpenVINO quantizes activations its own way: use int8-static.",
        "torch": "PyTorch computes over int8 weights in float32 alone: use int8-weights.",
        "tensorrt-rtx": "TensorRT has no dynamic int8: use int8-static.",
        "tensorrt": "TensorRT has no dynamic int8: use int8-static.",
    },
    "int8-static": {"torch": "PyTorch computes over int8 weights in float32 alone: use int8-weights."},
    "int8-hybrid": {"torch": "PyTorch computes over int8 weights in float32 alone: use int8-weights."},
}


# recipe -> target -> shares of float32's, of `WHAT_WAS_MEASURED` (`make bench`, docs/figures.md)
MEASURED: dict[str, dict[str, dict[str, float]]] = {
    "int8-weights": {
        "onnx": {"disk": 0.27, "memory": 0.55, "time": 1.36},
        "openvino": {"disk": 0.27, "memory": 0.79, "time": 1.01},
    },
    "int4-weights": {"onnx": {"disk": 0.16, "memory": 0.43, "time": 1.51}},
    "nf4-weights": {"openvino": {"disk": 0.16, "memory": 0.76, "time": 0.92}},
    "int8-static": {
        "onnx": {"disk": 0.27, "memory": 0.35, "time": 0.40},
        "openvino": {"disk": 0.27, "memory": 0.35, "time": 0.37},
    },
}
WHAT_WAS_MEASURED = "Stable Diffusion 1.5's UNet on two cores with VNNI"


@dataclass(frozen=True)
class Cell:
    """One cell of the support matrix.

    why: the reason for a no. buys: what the recipe is for there. here: what speaks against it on this machine.
    measured: shares of float32's disk, memory and time, where they were; see `WHAT_WAS_MEASURED`.
    """

    recipe: str
    target: str
    runs: bool
    why: str
    buys: str
    here: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)


def matrix() -> list[Cell]:
    """Every recipe on every target."""
    return [cell(recipe, target) for recipe in RECIPES.values() for target in TARGETS]


def cell(recipe: Recipe, target: str) -> Cell:
    why = _REFUSED.get(recipe.name, {}).get(target, "")
    if target == "aotinductor" and not recipe.lossless:
        why = "its packages take the model's own floats by name: use --to torch."
    if why:
        return Cell(recipe.id, target, False, why, "")
    # a plan holds code besides weights, and none has been run: what is true of files and CPUs is not said of it
    buys = "fewer bits; what that buys on a GPU was not measured" if target.startswith("tensorrt") else recipe.buys
    if target == "torch":
        buys = "less disk and memory, at more than float32's time; for those who stay with PyTorch"
    if recipe.lossless:
        buys = recipe.buys
    measured = MEASURED.get(recipe.name, {}).get(target, {})
    return Cell(recipe.id, target, True, "", buys, tuple(slower_here(recipe, target)), measured)


def check_target(recipe: Recipe, target: str) -> None:
    """Refuse what no artifact would change: asked before one is opened or exported.

    Raises:
        UsageError: there is no such target, or the recipe cannot run there.
    """
    if target not in TARGETS:
        raise UsageError(f"There is no target {target!r}.", f"Targets are {', '.join(TARGETS)}.")
    if recipe.lossless and target == "onnx":
        raise UsageError("An artifact in onnx and fp32 is what it is made from.", "Give --to or --quant.")
    if target.startswith("tensorrt") and not recipe.symmetric:
        raise UsageError(f"TensorRT takes no zero points, which {recipe.id} has.", "Leave symmetric=no out.")
    found = cell(recipe, target)
    if not found.runs:
        what, _, fix = found.why.partition(": ")
        raise UsageError(f"{recipe.id} does not run on {target}: {what}.", fix[0].upper() + fix[1:])


def check(recipe: Recipe, target: str, components: Iterable[str]) -> list[str]:
    """Warnings for a recipe that runs and may not help.

    Raises:
        UsageError: it cannot run there, or changes none of the components.
    """
    check_target(recipe, target)
    names = list(components)
    if not recipe.lossless and not any(recipe.applies_to(n) for n in names):
        wanted = ", ".join(recipe.components)
        raise UsageError(f"{recipe.id} is for {wanted}; this artifact has {', '.join(names)}.", "Use another recipe.")
    return [*_left_whole(recipe, target, names), *slower_here(recipe, target)]


def _left_whole(recipe: Recipe, target: str, components: Iterable[str]) -> list[str]:
    """A warning where the denoiser, or the classifier, is none of the recipe's."""
    left = [name for name in components if name in DENOISERS and not recipe.applies_to(name)]
    if not left or recipe.lossless:
        return []
    others = ", ".join(one.name for one in RECIPES.values() if one.applies_to(left[0]) and cell(one, target).runs)
    return [f"{recipe.id} leaves {left[0]} as it is, where most of the time goes: {others} change it"]


def slower_here(recipe: Recipe, target: str) -> list[str]:
    """A warning where integer activations gain nothing on this processor."""
    if target.startswith("tensorrt") or "int8" not in recipe.activations:
        return []
    flags = {flag for key, value in cpu_info() if key in ("flags", "Features") for flag in value.split()}
    if not flags or flags & set(_VNNI):
        return []
    return [
        f"{recipe.id} needs int8 dot products (VNNI) to be quick, which this processor lacks: expect 0.7 to 0.8 of "
        "float32's time, for some shapes more than 1."
    ]
