"""Control pictures by an estimator that the user brings: one ONNX file that takes a picture, on ONNX Runtime's CPU.

The file takes one float32 [1, 3, height, width], RGB in 0..1 (or scaled as `SCALINGS` says), of fixed or free sizes.
Its first output is read as `kind` says:

- depth: one number a pixel, larger is nearer, in any unit; stretched to black..white.
- lines: one number a pixel, 0..1, white lines on black (soft edges, line art, scribbles).
- colours: three numbers a pixel, [1, 3, h, w], 0..1, or -1..1 where any is negative (normals, segments).
- pose: people as [n, 17, 3] (COCO's order) or [n, 18, 3] (OpenPose's): x and y in pixels of the input, and a score; or
  [n, 57] as pose models of the YOLO family give them: box, score, class, 17 points.

Sizes of 1 in front are dropped.
"""

from __future__ import annotations

from importlib import import_module  # for a library without types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadInput, MissingDependency, NotFinite, RuntimeFailure, UsageError, first_line
from .control_pose import draw_people

KINDS = ("depth", "lines", "colours", "pose")
SCALINGS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Name -> mean and deviation that are taken off RGB in 0..1."""

LONGEST = 512  # pixels of the longer side, for a file that takes any size
STEP = 32  # whose multiples the sides then are
SCORE = 0.25  # people below are dropped, where the estimator scores them
_YOLO = 57  # box 4, score, class, 17 points of 3

Floats = npt.NDArray[np.float32]


def estimated(image: Image.Image, path: str | Path, kind: str = "depth", scaling: str = "unit") -> Image.Image:
    """What an estimator sees in a picture, as a control picture of its size, RGB.

    Args:
        path: the .onnx file. kind: how its output is read, one of `KINDS`. scaling: one of `SCALINGS`.

    Raises:
        UsageError: no such kind or scaling.
        BadInput: the file is missing, no ONNX, or takes or gives something else.
        MissingDependency: onnxruntime is not installed.
        RuntimeFailure: it does not run at this size.
        NotFinite: it gives NaN or infinity.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no kind {kind!r} of estimator.", f"Give one of {', '.join(KINDS)}.")
    if scaling not in SCALINGS:
        raise UsageError(f"There is no scaling {scaling!r}.", f"Give one of {', '.join(SCALINGS)}.")
    path = Path(path)
    session = _opened(path)
    name, sides = _input(path, session)
    width, height = sides or _free(image.size)
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    mean, deviation = (np.array(values, np.float32) for values in SCALINGS[scaling])
    tensor = ((pixels - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32)
    try:
        values = np.asarray(session.run(None, {name: tensor})[0])
    except Exception as exc:  # the library's exceptions share no base
        raise RuntimeFailure(
            f"The estimator {path} does not run at {width}x{height}: {first_line(exc)}",
            "Export it with the size that it was trained at.",
        ) from exc
    if not np.isfinite(values).all():
        raise NotFinite(f"The estimator {path} gives NaN or infinity.", "Use another file.")
    found = values.astype(np.float32)
    if kind == "pose":
        return draw_people(_people(path, found, (width, height)), image.size)
    made = _colours(path, found) if kind == "colours" else _grey(path, found, kind)
    return made.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"The estimator {path} is not a file.", "Check the path.")
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as exc:
        raise MissingDependency(
            f"The estimator {path} needs onnxruntime, which does not import here.", 'pip install "vitrify[onnx]"'
        ) from exc
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # a class of its own for every kind of damage
        raise BadInput(
            f"The estimator {path} does not open: {first_line(exc)}", "Give an .onnx file with its weights in it."
        ) from exc


def _input(path: Path, session: Any) -> tuple[str, tuple[int, int] | None]:
    """The input's name, and its (width, height) where they are fixed."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    fits = len(shape) == 4 and shape[1] == 3 and (shape[0] == 1 or not isinstance(shape[0], int))
    if not fits or inputs[0].type != "tensor(float)":
        raise BadInput(
            f"The estimator {path} takes {[(one.name, one.type, one.shape) for one in inputs]}.",
            "Give one that takes a single float32 [1, 3, height, width].",
        )
    height, width = shape[2:]
    fixed = isinstance(height, int) and isinstance(width, int)
    return inputs[0].name, (width, height) if fixed else None


def _free(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) that a picture of this size is shown in, about its own shape."""
    factor = min(1.0, LONGEST / max(size))
    width, height = (max(STEP, round(side * factor / STEP) * STEP) for side in size)
    return width, height


def _grey(path: Path, values: Floats, kind: str) -> Image.Image:
    """One number a pixel: [h, w] behind any sizes of 1."""
    plane = (
        values.reshape(values.shape[-2:]) if values.ndim >= 2 and values.size == np.prod(values.shape[-2:]) else None
    )
    if plane is None:
        raise _other(path, values, kind, "[1, 1, h, w] or [1, h, w]")
    plane = values.reshape(values.shape[-2:])
    low, high = float(plane.min()), float(plane.max())
    if kind == "lines":
        if low < -1e-3 or high > 1 + 1e-3:
            raise BadInput(
                f"The estimator {path} gives lines from {low:.3g} to {high:.3g}.", "Give one that gives 0 to 1."
            )
        return Image.fromarray((plane.clip(0, 1) * 255).round().astype(np.uint8))
    stretched = (plane - low) / (high - low) if high > low else np.zeros_like(plane)
    return Image.fromarray((stretched * 255).round().astype(np.uint8))


def _colours(path: Path, values: Floats) -> Image.Image:
    if values.ndim < 3 or values.shape[-3] != 3 or values.size != np.prod(values.shape[-3:]):
        raise _other(path, values, "colours", "[1, 3, h, w]")
    planes: Floats = values.reshape(values.shape[-3:]).transpose(1, 2, 0)
    if planes.min() < -1e-3:
        planes = planes / np.float32(2) + np.float32(0.5)
    if planes.min() < -1e-3 or planes.max() > 1 + 1e-3:
        raise BadInput(
            f"The estimator {path} gives colours from {values.min():.3g} to {values.max():.3g}.",
            "Give one that gives 0 to 1, or -1 to 1.",
        )
    return Image.fromarray((planes.clip(0, 1) * 255).round().astype(np.uint8))


def _people(path: Path, values: Floats, size: tuple[int, int]) -> Floats:
    """[n, 17 or 18, 3]: x and y as parts of the picture's width and height, and a score."""
    found = values
    while found.ndim > 2 and found.shape[0] == 1 and found.shape[-1] != 3:
        found = found[0]
    if found.ndim == 2 and found.shape[1] == _YOLO:
        found = found[found[:, 4] >= SCORE, 6:].reshape(-1, 17, 3)
    while found.ndim > 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 3 or found.shape[1] not in (17, 18) or found.shape[2] != 3:
        raise _other(path, values, "pose", "[n, 17, 3], [n, 18, 3] or [n, 57]")
    whole: Floats = np.array([size[0], size[1], 1], dtype=np.float32)
    parts: Floats = found / whole
    return parts


def _other(path: Path, values: Floats, kind: str, wanted: str) -> BadInput:
    return BadInput(
        f"The first output of the estimator {path} is {list(values.shape)}; {kind} is {wanted}.",
        "Use another file, or name the kind that it gives.",
    )
