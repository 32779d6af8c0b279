"""Faces: the bundled cascade on photographs, YuNet's decoding on graphs with planted faces, the crop."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitrify.core.errors import BadInput, MissingDependency
from vitrify.pipelines.faces import FaceBox, YuNet, crop, detect_faces

BLACK, RED = (0, 0, 0), (255, 0, 0)
STRIDES = (8, 16, 32)
KINDS = ("cls", "obj", "bbox", "kps")


def photograph(name: str) -> Image.Image:
    data = pytest.importorskip("skimage.data", reason="needs scikit-image (extra faces)")
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def near(box: FaceBox, expected: tuple[float, float, float, float], within: float) -> bool:
    return all(abs(a - b) <= within for a, b in zip(box[:4], expected, strict=True))


def test_the_astronaut_has_one_face() -> None:
    (box,) = detect_faces(photograph("astronaut"))
    assert near(box, (174, 66, 96, 96), 8)
    assert box.score is None


@pytest.mark.parametrize("name", ["coffee", "cat", "rocket", "camera", "gravel"])
def test_where_there_is_no_face_none_is_found(name: str) -> None:
    assert detect_faces(photograph(name)) == []


@pytest.mark.parametrize("factor", [0.3, 0.8, 3, 5])
def test_boxes_are_in_the_pictures_own_pixels(factor: float) -> None:
    image = photograph("astronaut")
    image = image.resize((round(image.width * factor), round(image.height * factor)))
    boxes = detect_faces(image)
    assert near(boxes[0], (174 * factor, 66 * factor, 96 * factor, 96 * factor), 20 * factor)


def test_two_faces_come_largest_first() -> None:
    image = photograph("astronaut")
    both = Image.new("RGB", (640, 300), (90, 90, 90))
    both.paste(image.crop((130, 20, 330, 220)).resize((150, 150)), (30, 60))
    both.paste(image.crop((130, 20, 330, 220)), (380, 40))
    first, second = detect_faces(both)
    assert first.left > 380 > second.left
    assert first.width > second.width


@pytest.mark.parametrize("size", [(1, 1), (24, 24), (23, 500), (25, 5000), (5000, 1)])
def test_tiny_and_narrow_pictures_have_none(size: tuple[int, int]) -> None:
    assert detect_faces(Image.new("RGB", size)) == []


def test_grey_and_transparent_pictures_are_taken() -> None:
    image = photograph("astronaut")
    assert len(detect_faces(image.convert("L"))) == 1
    assert len(detect_faces(image.convert("RGBA"))) == 1


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("skimage", "skimage.data", "skimage.feature", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # what Python itself does for an import that must fail
    with pytest.raises(MissingDependency, match=r'needs scikit-image.*pip install "vitrify\[faces\]"'):
        detect_faces(Image.new("RGB", (100, 100)))
    (tmp_path / "yunet.onnx").touch()
    with pytest.raises(MissingDependency, match=r'needs onnxruntime.*pip install "vitrify\[onnx\]"'):
        detect_faces(Image.new("RGB", (100, 100)), tmp_path / "yunet.onnx")


# A crop is square, around the face, and in the picture.


def test_a_crop_is_a_square_with_its_margin() -> None:
    image = Image.new("RGB", (400, 300), BLACK)
    image.paste(RED, (150, 100, 200, 180))
    box = FaceBox(150, 100, 50, 80, None)
    assert crop(image, box).size == (112, 112)
    tight = crop(image, box, margin=0)
    assert tight.size == (80, 80)
    assert tight.getpixel((15, 0)) == RED
    assert tight.getpixel((64, 79)) == RED
    assert tight.getpixel((14, 0)) == tight.getpixel((65, 79)) == BLACK


@pytest.mark.parametrize("box", [(0, 0, 50, 50), (360, 10, 40, 40), (10, 270, 30, 30), (0, 0, 400, 300)])
def test_a_crop_at_the_edge_stays_in_the_picture(box: tuple[int, int, int, int]) -> None:
    image = Image.new("RGB", (400, 300), RED)
    found = crop(image, FaceBox(*box, None), margin=0.5)
    assert found.size == (min(max(box[2:]) * 2, 300),) * 2
    assert found.getcolors() == [(found.width * found.height, RED)]


def test_the_astronauts_crop_holds_the_face() -> None:
    image = photograph("astronaut")
    box = detect_faces(image)[0]
    assert near(detect_faces(crop(image, box, 0.5))[0], (48, 48, 96, 96), 12)


# YuNet. Its file is not here; graphs with the same input and outputs are.


def planted_graph(path: Path, faces: list[tuple[int, int, tuple[float, ...], float, float]], side: int = 640) -> Path:
    """A graph with a fixed input whose outputs are constants: (stride, cell, bbox, cls, obj) of each face."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to build a graph")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes, outputs = [], []
    for stride in STRIDES:
        cells = (side // stride) ** 2
        values = {kind: np.zeros((1, cells, size), np.float32) for kind, size in zip(KINDS, (1, 1, 4, 10), strict=True)}
        for at, cell, bbox, cls, obj in faces:
            if at == stride:
                values["bbox"][0, cell], values["cls"][0, cell], values["obj"][0, cell] = bbox, cls, obj
        for kind, value in values.items():
            name = f"{kind}_{stride}"
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(value.shape)))
    return saved(path, nodes, [1, 3, side, side], outputs, [])


def seeing_graph(path: Path, sides: tuple[int | str, int | str], span: float) -> Path:
    """A graph that sees: cls is a cell's red, obj its lack of blue, each face `span` cells wide and twice as high."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to build a graph")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants = {
        "weight_red": np.array([0, 0, 1 / 255], np.float32).reshape(1, 3, 1, 1),
        "weight_blue": np.array([-1 / 255, 0, 0], np.float32).reshape(1, 3, 1, 1),
        "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
        "column": np.array([1, -1, 1]),
        "face": np.array([0.5, 0.5, math.log(span), math.log(2 * span)], np.float32).reshape(1, 1, 4),
        "points": np.zeros((1, 1, 10), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "weight_red"], ["red"]),
        helper.make_node("Conv", ["input", "weight_blue"], ["less_blue"]),
        helper.make_node("Add", ["less_blue", "one"], ["unblue"]),
    ]
    outputs = []
    for stride in STRIDES:
        pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        for source, kind in (("red", "cls"), ("unblue", "obj")):
            nodes.append(helper.make_node("AveragePool", [source], [f"{kind}_cells_{stride}"], **pool))
            nodes.append(helper.make_node("Reshape", [f"{kind}_cells_{stride}", "column"], [f"{kind}_{stride}"]))
        nodes.append(helper.make_node("Mul", [f"cls_{stride}", "zero"], [f"nothing_{stride}"]))
        nodes.append(helper.make_node("Add", [f"nothing_{stride}", "face"], [f"bbox_{stride}"]))
        nodes.append(helper.make_node("Add", [f"nothing_{stride}", "points"], [f"kps_{stride}"]))
        for kind, size in zip(KINDS, (1, 1, 4, 10), strict=True):
            shape = [1, f"cells_{stride}", size]
            outputs.append(helper.make_tensor_value_info(f"{kind}_{stride}", onnx.TensorProto.FLOAT, shape))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return saved(path, nodes, [1, 3, *sides], outputs, initializers)


def saved(path: Path, nodes: list[Any], shape: list[Any], outputs: list[Any], initializers: list[Any]) -> Path:
    onnx = pytest.importorskip("onnx", reason="needs onnx to build a graph")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra onnx)")
    given = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "yunet", [given], outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_planted_faces_are_decoded_and_doubles_dropped(tmp_path: Path) -> None:
    path = planted_graph(
        tmp_path / "yunet.onnx",
        [
            (8, 80 * 10 + 20, (0.5, 0.25, math.log(5), math.log(6)), 0.96, 0.98),  # centre 164, 82; 40 x 48
            (8, 80 * 10 + 21, (-0.5, 0.25, math.log(5), math.log(6)), 0.92, 0.96),  # the same face, less sure
            (16, 40 * 30 + 8, (0, 0, math.log(8), math.log(8)), 2.0, 1.5),  # centre 128, 480; 128 x 128; clipped to 1
            (32, 20 * 19 + 19, (0.5, 0.5, math.log(4), math.log(4)), 0.9, 0.95),  # half outside at the lower right
            (32, 20 * 5 + 10, (0, 0, math.log(3), math.log(3)), 0.99, 0.8),  # below the threshold: sqrt(0.792)
            (32, 0, (0, 0, 0, 0), -3.0, -3.0),  # no product of two negatives
        ],
    )
    picture = Image.new("RGB", (640, 640))
    found = detect_faces(picture, path)
    assert [box[:4] for box in found] == [(64, 416, 128, 128), (560, 560, 80, 80), (144, 58, 40, 48)]
    expected = [1.0, math.sqrt(0.9 * 0.95), math.sqrt(0.96 * 0.98)]
    assert [box.score for box in found] == pytest.approx(expected)
    lower = YuNet(path, min_score=0.85, max_overlap=1.0)
    assert len(detect_faces(picture, lower)) == 5


def test_a_smaller_and_a_larger_picture_share_the_fixed_input(tmp_path: Path) -> None:
    path = planted_graph(tmp_path / "yunet.onnx", [(16, 40 * 10 + 10, (0, 0, math.log(4), math.log(4)), 1, 1)])
    detector = YuNet(path)
    assert detect_faces(Image.new("RGB", (640, 320)), detector)[0][:4] == (128, 128, 64, 64)
    assert detect_faces(Image.new("RGB", (1280, 900)), detector)[0][:4] == (256, 256, 128, 128)
    assert detect_faces(Image.new("RGB", (170, 640)), detector)[0][:4] == (128, 128, 42, 64)
    assert detect_faces(Image.new("RGB", (100, 100)), detector) == []  # the box lies in the padding


@pytest.mark.parametrize("sides", [(640, 640), (320, 640), ("height", "width")])
@pytest.mark.parametrize("size", [(640, 320), (500, 300), (1280, 640), (100, 90), (2000, 700)])
def test_the_graph_sees_the_picture_where_it_is(
    sides: tuple[int | str, int | str], size: tuple[int, int], tmp_path: Path
) -> None:
    """A red block on blue: BGR in order, bytes not scaled, rows and columns not swapped, boxes scaled back."""
    detector = YuNet(seeing_graph(tmp_path / "yunet.onnx", sides, span=2), min_score=0.95, max_overlap=0.0)
    bounds = (640, 640) if isinstance(sides[0], str) else (sides[1], sides[0])
    scale = min(1.0, *(int(bound) / side for bound, side in zip(bounds, size, strict=True)))
    image = Image.new("RGB", size, (0, 0, 255))
    centre = np.array([4.5 * 8, 6.5 * 8]) / scale  # the middle of cell (4, 6) of stride 8
    half = 5 / scale
    ImageDraw.Draw(image).rectangle([*(centre - half).round(), *(centre + half).round()], fill=RED)
    (box,) = detect_faces(image, detector)
    expected = (*(centre - np.array([8, 16]) / scale), 16 / scale, 32 / scale)
    assert near(box, expected, 1.5)
    assert box.score == pytest.approx(1, abs=0.05)


def test_files_that_are_no_yunet_say_so(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx to build a graph")
    image = Image.new("RGB", (64, 64))
    with pytest.raises(BadInput, match=r"absent\.onnx is not a file"):
        detect_faces(image, tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(BadInput, match=r"text\.onnx is not a YuNet face detector.*OpenCV Zoo"):
        detect_faces(image, tmp_path / "text.onnx")
    planted_graph(tmp_path / "good.onnx", [])
    assert detect_faces(image, tmp_path / "good.onnx") == []

    model = onnx.load(tmp_path / "good.onnx")
    del model.graph.output[0]
    onnx.save(model, tmp_path / "less.onnx")
    with pytest.raises(BadInput, match="it has no output cls_8"):
        detect_faces(image, tmp_path / "less.onnx")

    model = onnx.load(tmp_path / "good.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, tmp_path / "grey.onnx")
    with pytest.raises(BadInput, match=r"its inputs are .*\[1, 1, 640, 640\]"):
        detect_faces(image, tmp_path / "grey.onnx")

    with pytest.raises(BadInput, match="its input of 100x100 is no multiple of 32"):
        detect_faces(image, planted_graph(tmp_path / "odd.onnx", [], side=100))

    model = onnx.load(tmp_path / "good.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 320
    onnx.save(model, tmp_path / "sizes.onnx")
    with pytest.raises(BadInput, match=r"cls_8 is \[1, 6400, 1\] for 320x320"):
        detect_faces(image, tmp_path / "sizes.onnx")
