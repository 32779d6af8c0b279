"""Where the faces are: scikit-image's bundled cascade, or a YuNet file that the user brings."""

from __future__ import annotations

from importlib import import_module  # for libraries without types
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadInput, MissingDependency, RuntimeFailure

LONGEST = 640
"""Pixels of the longer side of what a detector sees; larger pictures are scaled down to it."""

_CASCADE_WINDOW = 24  # pixels of the side of the smallest face that the bundled cascade was trained for
_SMALLEST = 60  # or a sixth of the shorter side, in small pictures
_SCALE_STEP = 1.1
# Chosen on what scikit-image bundles: 41 of 50 faces of its LFW subset (25-pixel crops made larger), its one
# photograph of a face in all of 32 sizes and crops, and nothing in 98 pictures without a face; with 8 neighbours there
# was one.
_NEIGHBOURS = 10

_STRIDES = (8, 16, 32)
_YUNET_WIDTHS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
_YUNET_OUTPUTS = {f"{kind}_{stride}": width for kind, width in _YUNET_WIDTHS.items() for stride in _STRIDES}

Floats = npt.NDArray[np.float64]


class FaceBox(NamedTuple):
    """A face in pixels of the picture, inside it; score 0..1, None where the detector gives none."""

    left: int
    top: int
    width: int
    height: int
    score: float | None


class Detector(Protocol):
    """What finds faces; a Protocol, because one is a cascade and the other a session."""

    def detect(self, image: Image.Image) -> list[FaceBox]:
        """The faces in an RGB picture, in any order."""


def open_detector(detector: Path | Detector | None = None) -> Detector:
    """A detector for many pictures: that of a YuNet .onnx file, scikit-image's LBP cascade (None), or the one given.

    Raises:
        MissingDependency: scikit-image or onnxruntime is not installed.
        BadInput: `detector` is no YuNet file.
    """
    if detector is None:
        return Cascade()
    return YuNet(detector) if isinstance(detector, Path) else detector


def detect_faces(image: Image.Image, detector: Path | Detector | None = None) -> list[FaceBox]:
    """The faces that look at the camera, the largest first; no two of one face.

    Args:
        image: RGB, upright.
        detector: as `open_detector` takes it; for many pictures, open it once.

    Raises:
        MissingDependency: scikit-image or onnxruntime is not installed.
        BadInput: `detector` is no YuNet file.
    """
    found = open_detector(detector).detect(image)
    return sorted(found, key=lambda box: box.width * box.height, reverse=True)


def crop(image: Image.Image, box: FaceBox, margin: float = 0.2) -> Image.Image:
    """A square around the face, moved and if need be shrunk to lie inside the picture.

    Args:
        margin: added on each side, as a part of the box's longer side.
    """
    side = round(max(box.width, box.height) * (1 + 2 * margin))
    side = max(1, min(side, *image.size))
    left = round(box.left + (box.width - side) / 2)
    top = round(box.top + (box.height - side) / 2)
    left = min(max(left, 0), image.width - side)
    top = min(max(top, 0), image.height - side)
    return image.crop((left, top, left + side, top + side))


class Cascade:
    """OpenCV's lbpcascade_frontalface, by scikit-image (Liao et al. 2007, Multi-Block LBP).

    Raises:
        MissingDependency: scikit-image is not installed.
    """

    def __init__(self) -> None:
        try:
            data, feature = import_module("skimage.data"), import_module("skimage.feature")
        except ImportError as exc:
            raise MissingDependency(
                "Finding faces needs scikit-image, which does not import here.", 'pip install "vitrify[faces]"'
            ) from exc
        self._cascade: Any = feature.Cascade(data.lbp_frontal_face_cascade_filename())

    def detect(self, image: Image.Image) -> list[FaceBox]:
        """The faces in an RGB picture, the largest first; without scores."""
        small, scale = _scaled(image, LONGEST / max(image.size))
        short = min(small.size)
        if short < _CASCADE_WINDOW:
            return []
        least = max(_CASCADE_WINDOW, min(_SMALLEST, short // 6))
        found = self._cascade.detect_multi_scale(
            img=np.asarray(small),
            scale_factor=_SCALE_STEP,
            step_ratio=1,
            min_size=(least, least),
            max_size=(short, short),
            min_neighbor_number=_NEIGHBOURS,
        )
        boxes = np.array([[face["c"], face["r"], face["width"], face["height"]] for face in found], float)
        boxes = boxes.reshape(-1, 4)
        areas = boxes[:, 2] * boxes[:, 3]
        # measured against the smaller: a mouth or an eye taken for a face lies in the face
        kept = _apart(boxes, areas, 0.5, of_smaller=True)
        return _boxes(boxes[kept] / scale, None, image.size)


class YuNet:
    """A YuNet face detector (Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector") on ONNX Runtime's CPU.

    For OpenCV Zoo's face_detection_yunet_*.onnx: input float32 [1, 3, height, width], BGR, 0..255; for each of the
    strides 8, 16 and 32 the outputs cls_, obj_ [1, cells, 1], bbox_ [1, cells, 4] and kps_ [1, cells, 10].

    Args:
        path: the file.
        min_score: faces below are dropped. This and max_overlap are the defaults of OpenCV's FaceDetectorYN.
        max_overlap: of two faces with a larger intersection over union the lower score is dropped.

    Raises:
        BadInput: the file is missing or no YuNet.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, min_score: float = 0.9, max_overlap: float = 0.3) -> None:
        self._path, self._min_score, self._max_overlap = path, min_score, max_overlap
        if not path.is_file():
            raise BadInput(f"The face detector {path} is not a file.", "Check the path.")
        try:
            onnxruntime = import_module("onnxruntime")
        except ImportError as exc:
            raise MissingDependency(
                f"The face detector {path} needs onnxruntime, which does not import here.",
                'pip install "vitrify[onnx]"',
            ) from exc
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings about old exports help nobody here
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # a class of its own for every kind of damage
            raise self._not_yunet(f"ONNX Runtime says: {exc}") from exc
        self._names = list(_YUNET_OUTPUTS)
        self._input, self._sides = self._checked()

    def _checked(self) -> tuple[str, tuple[int, int] | None]:
        """The input's name, and its (height, width) where they are fixed."""
        missing = sorted(_YUNET_OUTPUTS.keys() - {output.name for output in self._session.get_outputs()})
        if missing:
            raise self._not_yunet(f"it has no output {', '.join(missing)}")
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
            raise self._not_yunet(f"its inputs are {[(one.name, one.type, one.shape) for one in inputs]}")
        height, width = shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            return inputs[0].name, None
        if height % _STRIDES[-1] or width % _STRIDES[-1]:
            raise self._not_yunet(f"its input of {width}x{height} is no multiple of {_STRIDES[-1]}")
        return inputs[0].name, (height, width)

    def _not_yunet(self, why: str) -> BadInput:
        return BadInput(
            f"{self._path} is not a YuNet face detector: {why}.",
            "Use face_detection_yunet_2023mar.onnx from OpenCV Zoo, or leave the detector out.",
        )

    def detect(self, image: Image.Image) -> list[FaceBox]:
        """The faces in an RGB picture, the highest score first."""
        factor = LONGEST / max(image.size)
        if self._sides is not None:
            factor = min(self._sides[0] / image.height, self._sides[1] / image.width)
        small, scale = _scaled(image, factor)
        step = _STRIDES[-1]
        height, width = self._sides or tuple(-(-side // step) * step for side in (small.height, small.width))
        tensor = np.zeros((1, 3, height, width), np.float32)  # the picture at the upper left, black around it
        tensor[0, :, : small.height, : small.width] = np.asarray(small)[:, :, ::-1].transpose(2, 0, 1)
        try:
            values = self._session.run(self._names, {self._input: tensor})
        except Exception as exc:
            raise RuntimeFailure(
                f"The face detector {self._path} failed: {exc}.", "Leave the detector out, or use another file."
            ) from exc
        boxes, scores = self._decoded(dict(zip(self._names, values, strict=True)), height, width)
        kept = _apart(boxes, scores, self._max_overlap)
        return _boxes(boxes[kept] / scale, scores[kept], image.size)

    def _decoded(self, values: dict[str, Any], height: int, width: int) -> tuple[Floats, Floats]:
        """Boxes [n, 4] (left, top, width, height) and scores [n], as OpenCV's face_detect.cpp decodes them."""
        boxes, scores = [], []
        for stride in _STRIDES:
            rows, columns = height // stride, width // stride
            cells = {}
            for kind, size in _YUNET_WIDTHS.items():
                array = np.asarray(values[f"{kind}_{stride}"], np.float64)
                if array.size != rows * columns * size:
                    raise self._not_yunet(f"{kind}_{stride} is {list(array.shape)} for {width}x{height}")
                cells[kind] = array.reshape(-1, size)
            score = np.sqrt(cells["cls"].clip(0, 1) * cells["obj"].clip(0, 1))[:, 0]
            likely = np.flatnonzero(score >= self._min_score)
            origin = np.stack([likely % columns, likely // columns], axis=1)
            offset = cells["bbox"][likely]
            size_of = np.exp(offset[:, 2:].clip(max=20)) * stride  # 20: far beyond any picture, and finite
            centre = (origin + offset[:, :2]) * stride
            boxes.append(np.concatenate([centre - size_of / 2, size_of], axis=1))
            scores.append(score[likely])
        return np.concatenate(boxes), np.concatenate(scores)


def _scaled(image: Image.Image, factor: float) -> tuple[Image.Image, float]:
    """The picture as RGB made smaller, never larger, and the factor by which it was."""
    image = image.convert("RGB")
    if factor >= 1:
        return image, 1.0
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BILINEAR), factor


def _apart(boxes: Floats, ranks: Floats, max_overlap: float, *, of_smaller: bool = False) -> list[int]:
    """Indices of the boxes to keep, the highest rank first (non-maximum suppression).

    Args:
        boxes: [n, 4]: left, top, width, height.
        ranks: [n]: of two boxes that overlap the higher stays.
        max_overlap: intersection over union, or over the smaller of both areas.
    """
    areas = boxes[:, 2] * boxes[:, 3]
    ends = boxes[:, :2] + boxes[:, 2:]
    waiting = np.argsort(-ranks, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[waiting, :2])
        shared = (np.minimum(ends[best], ends[waiting]) - low).clip(min=0).prod(axis=1)
        whole = np.minimum(areas[best], areas[waiting]) if of_smaller else areas[best] + areas[waiting] - shared
        waiting = waiting[shared <= max_overlap * whole]
    return kept


def _boxes(boxes: Floats, scores: Floats | None, size: tuple[int, int]) -> list[FaceBox]:
    """Whole pixels inside the picture; boxes with nothing in it are left out."""
    low = boxes[:, :2].clip(0, size)
    corners = np.concatenate([low, (boxes[:, :2] + boxes[:, 2:]).clip(0, size)], axis=1).round().astype(int)
    found: list[FaceBox] = []
    for i, (left, top, right, bottom) in enumerate(corners.tolist()):
        if right > left and bottom > top:
            found.append(FaceBox(left, top, right - left, bottom - top, None if scores is None else float(scores[i])))
    return found
