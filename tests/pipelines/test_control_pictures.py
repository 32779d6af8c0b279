"""Control pictures: OpenCV's own edges, lines, and estimators in ONNX that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitrify.core.errors import BadInput, NotFinite, RuntimeFailure, UsageError
from vitrify.pipelines.control_pictures import canny, control_picture, estimated, lineart

pytest.importorskip("skimage", reason="needs vitrify[control]")
KNOWN = Path(__file__).parents[1] / "fixtures/control"


def drawing(size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Shapes in colours that are equally light, a gradient, and some noise."""
    rng = np.random.default_rng(5)
    image = Image.new("RGB", size, (255, 255, 255))
    brush = ImageDraw.Draw(image)
    brush.ellipse((8, 6, 50, 60), fill=(255, 220, 60), outline=(40, 40, 40))
    brush.polygon([(55, 10), (90, 30), (60, 66)], fill=(0, 150, 60))
    brush.line((0, 71, 95, 40), fill=(200, 60, 60), width=2)
    pixels = np.asarray(image).astype(int)
    pixels[30:50, 60:90] += np.arange(30)[None, :, None]
    return Image.fromarray((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("thresholds", [(100, 200), (50, 90), (0, 0)])
def test_canny_finds_opencvs_edges(thresholds: tuple[int, int]) -> None:
    """The pictures in fixtures are what cv2.Canny(np.asarray(drawing()), low, high) of OpenCV 5.0 gave."""
    expected = np.asarray(Image.open(KNOWN / f"canny-{thresholds[0]}-{thresholds[1]}.png"))
    found = np.asarray(canny(drawing(), *thresholds))
    assert found.shape == (72, 96, 3)
    assert 0 < (expected > 0).mean() < 0.6
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_array_equal(found[..., 1], expected)


def test_canny_sees_borders_that_only_a_colour_has() -> None:
    image = Image.new("RGB", (32, 32), (200, 60, 60))
    grey = int(np.asarray(image.convert("L"))[0, 0])
    image.paste((grey, grey, grey), (16, 0, 32, 32))
    edges = np.asarray(canny(image))[..., 0]
    assert (edges[1:-1] > 0).any(axis=1).all()
    assert (edges > 0).sum() <= 40, "one pixel wide"


def test_smoothing_removes_the_edges_of_noise() -> None:
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(80, 170, (64, 64, 3)).astype(np.uint8))
    assert (np.asarray(canny(noisy)) > 0).mean() > 0.05
    assert (np.asarray(canny(noisy, sigma=3)) > 0).mean() < 0.01


def test_lines_are_white_where_the_picture_is_darker_than_around() -> None:
    image = Image.new("L", (64, 64), 230)
    ImageDraw.Draw(image).line((10, 32, 54, 32), fill=20, width=2)
    lines = np.asarray(lineart(image))
    assert lines.shape == (64, 64, 3)
    assert lines[32, 20:44].min() > 100
    assert lines[:20].max() == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda i: canny(i, 200, 100), UsageError),
        (lambda i: canny(i, float("nan"), 100), UsageError),
        (lambda i: canny(i, sigma=-1), UsageError),
        (lambda i: control_picture(i, "hed"), UsageError),
        (lambda i: control_picture(i, "depth"), UsageError),
        (lambda i: control_picture(i, "canny", "x.onnx"), UsageError),
        (lambda i: control_picture(i, "canny:imagenet"), UsageError),
        (lambda i: control_picture(i, "depth:bgr", "missing.onnx"), UsageError),
        (lambda i: control_picture(i, "depth", "missing.onnx"), BadInput),
        (lambda i: estimated(i, "missing.onnx", "heat"), UsageError),
        (lambda i: estimated(i, "missing.onnx", scaling="bgr"), UsageError),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call(Image.new("RGB", (8, 8)))


def test_a_picture_that_is_ready_stays_as_it_is() -> None:
    image = drawing().convert("RGBA")
    np.testing.assert_array_equal(control_picture(image), image.convert("RGB"))


@pytest.fixture
def estimator(tmp_path: Path) -> Any:
    """estimator(nodes, shape=..., constants=...): an ONNX file from `x` to `y`."""
    onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

    def make(nodes: list[Any], shape: Any = (1, 3, "h", "w"), constants: Any = None, kind: int = 1) -> Path:
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        given = onnx.helper.make_tensor_value_info("x", kind, shape)
        stored = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
        graph = onnx.helper.make_graph(nodes, "estimator", [given], [out], stored)
        path = tmp_path / "estimator.onnx"
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path)
        )
        return path

    return make


def node(*arguments: Any, **options: Any) -> Any:
    import onnx

    return onnx.helper.make_node(*arguments, **options)


def ramp(size: tuple[int, int] = (100, 60)) -> Image.Image:
    grey = np.tile(np.linspace(60, 180, size[0]), (size[1], 1)).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


MEAN = [node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]


@pytest.mark.parametrize("shape", [(1, 3, "h", "w"), ("n", 3, 48, 80), (1, 3, None, None)])
def test_depth_is_stretched_from_black_to_white(estimator: Any, shape: Any) -> None:
    made = control_picture(ramp(), "depth", estimator(MEAN, shape))
    pixels = np.asarray(made)
    assert made.size == (100, 60)
    assert made.mode == "RGB"
    assert pixels[:, 0].max() <= 3
    assert pixels[:, -1].min() >= 252
    assert (np.diff(pixels[30, :, 0].astype(int)) >= -2).all(), "nearer stays lighter"


def test_scalings_are_applied_before_the_estimator(estimator: Any) -> None:
    path = estimator([node("Identity", ["x"], ["y"])])
    image = Image.new("RGB", (32, 32), (255, 0, 128))
    plain = np.asarray(estimated(image, path, "colours"))[5, 5]
    signed = np.asarray(estimated(image, path, "colours", "signed"))[5, 5]
    assert plain.tolist() == [255, 0, 128]
    assert signed.tolist() == [255, 0, 128], "-1..1 is read as -1..1"
    with pytest.raises(BadInput, match="gives colours from"):
        control_picture(image, "colours:imagenet", path)


def test_lines_keep_their_grey(estimator: Any) -> None:
    image = Image.new("RGB", (64, 64), (51, 51, 51))
    assert np.asarray(estimated(image, estimator(MEAN), "lines")).tolist() == np.full((64, 64, 3), 51).tolist()
    doubled = [node("Add", ["x", "x"], ["two"]), node("Add", ["two", "x"], ["three"])]
    louder = [*doubled, node("Add", ["three", "three"], ["six"]), node("ReduceMean", ["six"], ["y"], axes=[1])]
    with pytest.raises(BadInput, match=r"gives lines from 1\.2"):
        estimated(image, estimator(louder), "lines")


@pytest.mark.parametrize("form", ["coco", "openpose", "yolo"])
def test_people_are_drawn_where_they_are(estimator: Any, form: str) -> None:
    """A person whose shoulders and hips make a square; one more who is not seen."""
    points = np.zeros((17, 3), np.float32)
    places = {5: (20, 20), 6: (44, 20), 11: (22, 44), 12: (42, 44), 0: (32, 8)}
    for index, (x, y) in places.items():
        points[index] = (x, y, 0.9)
    people = np.stack([points, points * 0])[None]
    if form == "openpose":
        order = [0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
        people = people[:, :, order].copy()
        people[0, 0, 1, 0] = 32
    if form == "yolo":
        rows = np.zeros((1, 2, 57), np.float32)
        rows[0, 0, 4], rows[0, :, 6:] = 0.8, people[0].reshape(2, -1)
        people = rows
    parts = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Mul", ["sum", "zero"], ["nothing"]),
        node("Add", ["people", "nothing"], ["y"]),
    ]
    path = estimator(parts, (1, 3, 64, 64), {"people": people, "zero": np.float32(0)})
    pixels = np.asarray(estimated(Image.new("RGB", (128, 128)), path, "pose"))
    assert pixels.shape == (128, 128, 3)
    assert pixels[16, 64].tolist() == [255, 0, 0], "the nose"
    assert pixels[40, 88].tolist() == [255, 170, 0], "the right shoulder"
    assert pixels[40, 40].tolist() == [85, 255, 0], "the left one"
    assert pixels[40, 76].max() > 100, "a limb from neck to shoulder"
    assert 0.001 < (pixels.max(axis=2) > 0).mean() < 0.2


def test_what_is_no_estimator_is_refused(estimator: Any, tmp_path: Path) -> None:
    image = ramp()
    (tmp_path / "words.onnx").write_text("no graph")
    with pytest.raises(BadInput, match="does not open"):
        estimated(image, tmp_path / "words.onnx")
    with pytest.raises(BadInput, match="takes"):
        estimated(image, estimator(MEAN, (1, "h", "w", 3)))
    with pytest.raises(BadInput, match="takes"):
        estimated(image, estimator(MEAN, (2, 3, 32, 32)))
    with pytest.raises(BadInput, match="depth is"):
        estimated(image, estimator([node("Identity", ["x"], ["y"])]))
    with pytest.raises(BadInput, match="pose is"):
        estimated(image, estimator(MEAN), "pose")
    with pytest.raises(NotFinite):
        estimated(Image.new("RGB", (32, 32)), estimator([node("Log", ["x"], ["z"]), node("ReduceMean", ["z"], ["y"])]))
    fixed = estimator([node("Add", ["x", "c"], ["y"])], constants={"c": np.zeros((1, 3, 7, 7), np.float32)})
    with pytest.raises(RuntimeFailure, match="does not run at"):
        estimated(image, fixed, "colours")
