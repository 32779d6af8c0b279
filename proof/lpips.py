"""LPIPS: how far apart two pictures are to the eye, by a network's features.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018: AlexNet's features after
each of its five ReLUs, normalized along the channels; their squared differences weighted by a 1x1 layer that was fitted
to people's judgements, averaged over the picture, summed over the layers. This is version 0.1 of the authors' package,
which differs from 0.0 in that the input is scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..core.errors import BadInput
from .measures import check_folder, hashes_of

if TYPE_CHECKING:
    import torch

# index among torchvision's `features`, shape of the weight, stride, padding, whether a pooling goes before it
_LAYERS = (
    (0, (64, 3, 11, 11), 4, 2, False),
    (3, (192, 64, 5, 5), 1, 2, True),
    (6, (384, 192, 3, 3), 1, 1, True),
    (8, (256, 384, 3, 3), 1, 1, False),
    (10, (256, 256, 3, 3), 1, 1, False),
)
# ImageNet's mean and deviation for pixels in -1..1, as the authors rounded them
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_LEAST = 31  # pixels a side, below which the second pooling has nothing left
_FIX = (
    "Put torchvision's AlexNet (alexnet-owt-7be5be79.pth) and `weights/v0.1/alex.pth` of the Python package lpips, as "
    ".pth or .safetensors, into one folder and give that."
)


class Lpips:
    """LPIPS with AlexNet, computed in float32 on the CPU.

    Args:
        folder: .safetensors or .pth files that hold `features.N.weight` and `.bias` of torchvision's AlexNet, and
            `linN.model.1.weight` of the lpips package. What else they hold is left alone.

    Raises:
        BadInput: a file cannot be read; a weight is missing, there twice, or of another shape.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder, "the weights of LPIPS", _FIX)
        paths = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pth") and p.is_file())
        if not paths:
            raise BadInput(f"{folder} holds no .safetensors and no .pth file.", _FIX)
        self._weights, used = _pick(paths, folder)
        self.files: Mapping[str, str] = hashes_of(used)

    def measure(self, prompt: str, reference: Image.Image, given: Image.Image) -> dict[str, float]:
        """{"lpips": the distance; 0 where they are equal}.

        Raises:
            BadInput: a side is shorter than 31 pixels.
        """
        return {"lpips": self.distance(np.asarray(reference), np.asarray(given))}

    def distance(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
        """Of two uint8 pictures [height, width, 3] of one shape.

        Raises:
            BadInput: a side is shorter than 31 pixels.
        """
        import torch

        if min(a.shape[:2]) < _LEAST:
            raise BadInput(
                f"LPIPS of pictures of {a.shape[1]}x{a.shape[0]} pixels is not defined: AlexNet needs {_LEAST}.",
                "Leave --lpips out.",
            )
        with torch.no_grad():
            pixels = torch.from_numpy(np.stack([a, b]).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
            shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
            x, total = (pixels - shift) / scale, 0.0
            for number, (index, _, stride, padding, pooled) in enumerate(_LAYERS):
                if pooled:
                    x = torch.nn.functional.max_pool2d(x, 3, 2)
                weight, bias = (self._weights[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
                x = torch.nn.functional.conv2d(x, weight, bias, stride, padding).relu()
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)
                squares = (unit[:1] - unit[1:]).square()
                total += float(torch.nn.functional.conv2d(squares, self._weights[_lin(number)]).mean())
        return total


def _lin(number: int) -> str:
    return f"lin{number}.model.1.weight"  # 0 is the dropout that training had


def _wanted() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that LPIPS needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (index, shape, *_) in enumerate(_LAYERS):
        shapes[f"features.{index}.weight"] = shape
        shapes[f"features.{index}.bias"] = shape[:1]
        shapes[_lin(number)] = (1, shape[0], 1, 1)
    return shapes


def _pick(paths: list[Path], folder: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """The wanted weights in float32, and the files that they were in."""
    wanted = _wanted()
    found: dict[str, torch.Tensor] = {}
    places: dict[str, Path] = {}
    for path in paths:
        for name, tensor in _read(path).items():
            if name not in wanted:
                continue
            if name in places:
                raise BadInput(
                    f"{folder} holds {name} twice: in {places[name].name} and in {path.name}.",
                    "Leave one of AlexNet and one of LPIPS's own weights in it (`alex`, version 0.1).",
                )
            shape = tuple(getattr(tensor, "shape", ()))
            if shape != wanted[name]:
                raise BadInput(f"{path}: {name} has the shape {list(shape)}, AlexNet's has {list(wanted[name])}.", _FIX)
            found[name], places[name] = tensor.float(), path
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadInput(f"{folder} has files but lacks {', '.join(missing[:3])}{more}.", _FIX)
    bad = next((name for name, tensor in found.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise BadInput(f"{places[bad]}: {bad} holds values that are not numbers.", "Download the file again.")
    return found, sorted(set(places.values()))


def _read(path: Path) -> dict[str, Any]:
    """Name -> tensor of one file; runs no code that a pickle may hold."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # the authors' files were written on a GPU
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # damaged files raise anything: pickle's errors, RuntimeError, EOFError, KeyError
        said = (str(exc).splitlines() or [""])[0]
        raise BadInput(
            f"{path} cannot be read as weights ({type(exc).__name__}: {said}).", "Download the file again."
        ) from exc
    if not isinstance(held, dict):
        raise BadInput(f"{path} holds a {type(held).__name__}, not weights by name.", _FIX)
    return dict(held)
