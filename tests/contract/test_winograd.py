"""3x3 convolutions by fewer products, on each runtime that has them: the same results, for any sizes, where it was not
refused.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitrify.core.artifact import Component, WeightFile  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact  # noqa: E402
from vitrify.core.registry import load_runtime  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.runtimes import ort_winograd, winograd  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.initializers import bfloat16_bits  # noqa: E402

CHANNELS = 64
USUAL = {"b": (1, 1, 4), "h": (8, 128, 128), "w": (8, 128, 128)}  # smallest, usual, largest
DOUBLING = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CPU = Device("cpu")


class Layer:
    """Two convolutions, one with a bias, of a picture that may be resized before.

    stored: how the first one's weight is kept: "float32", "float16", "bfloat16", or "int8", with a factor behind it.
    """

    def __init__(
        self,
        folder: Path,
        runtime: str,
        *,
        resized: dict[str, Any] | None = None,
        stored: str = "float32",
        **attributes: Any,
    ) -> None:
        self.runtime = load_runtime(runtime)
        rng = np.random.default_rng(0)
        kernels = (rng.standard_normal((2, CHANNELS, CHANNELS, 3, 3)) / 24).astype(np.float32)
        nodes, given, weight = [], "x", "conv.weight"
        first = numpy_helper.from_array(kernels[0], weight)
        if resized is not None:
            nodes.append(helper.make_node("Resize", ["x", "", "scales"], ["large"], **resized))
            given = "large"
        if stored != "float32":
            kind = getattr(TensorProto, stored.upper())
            values = np.rint(kernels[0] * 600) if stored == "int8" else kernels[0]
            first = helper.make_tensor(weight, kind, values.shape, _bytes(values, stored), raw=True)
            nodes.append(helper.make_node("Cast", [weight], ["kernel"], to=TensorProto.FLOAT))
            weight = "kernel"
        if stored == "int8":
            nodes.append(helper.make_node("Mul", [weight, "factor"], ["scaled"]))
            weight = "scaled"
        said = {"pads": [1] * 4, **attributes}
        nodes.append(helper.make_node("Conv", [given, weight, "conv.bias"], ["middle"], **said))
        nodes.append(helper.make_node("Conv", ["middle", "last.weight"], ["y"], **said))
        shapes = {"x": ["b", CHANNELS, "h", "w"], "y": ["b", CHANNELS, "rows", "columns"]}
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes["x"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["y"])],
            [
                first,
                numpy_helper.from_array(kernels[1], "last.weight"),
                numpy_helper.from_array(rng.standard_normal(CHANNELS).astype(np.float32), "conv.bias"),
                numpy_helper.from_array(np.array(1 / 600, np.float32), "factor"),
                numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
            ],
        )
        folder.mkdir(exist_ok=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, folder / "g.onnx", save_as_external_data=True, location="w.bin", size_threshold=1000)
        x, y = (TensorSpec(DType.FLOAT32, tuple(shapes[name])) for name in ("x", "y"))
        weights = (WeightFile("w.bin", (folder / "w.bin").stat().st_size),)
        self.component = Component(
            "g", "onnx", "g.onnx", {"x": x}, {"y": y}, weights=weights, shapes=USUAL, root=folder
        )

    @contextmanager
    def edited(self) -> Iterator[Any]:
        """The graph's file, without its weights, to be changed."""
        model = onnx.load(self.component.graph_path, load_external_data=False)
        yield model
        self.component.graph_path.write_bytes(model.SerializeToString())

    def run(self, *sizes: tuple[int, int, int], overrides: Any = None, **options: Any) -> tuple[Any, int]:
        """What a session gives last, and how many convolutions compute fewer products."""
        session = self.runtime.open(self.component, CPU, Options(**options), overrides)
        for batch, *sides in sizes or ((1, 64, 64),):
            x = np.random.default_rng(1).standard_normal((batch, CHANNELS, *sides), dtype=np.float32)
            made = session.run({"x": x})["y"]
        count = session.details["winograd"]
        session.close()
        return made, count


def _bytes(values: np.ndarray, stored: str) -> bytes:
    return (bfloat16_bits(values) if stored == "bfloat16" else values.astype(stored)).tobytes()


@pytest.fixture(params=["openvino", "onnx"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip({"onnx": "onnxruntime"}.get(request.param, request.param))
    monkeypatch.setattr(ort_winograd, "_LEAST", 1)
    return str(request.param)


@pytest.fixture
def module(runtime: str) -> Any:
    """The one that rewrites graphs of this runtime."""
    return importlib.import_module({"openvino": "vitrify.runtimes.ov_winograd"}.get(runtime, ort_winograd.__name__))


@pytest.fixture
def layer(runtime: str, tmp_path: Path) -> Callable[..., Layer]:
    return lambda **how: Layer(tmp_path / "layer", runtime, **how)


on_openvino = pytest.mark.parametrize("runtime", ["openvino"], indirect=True)
on_onnx = pytest.mark.parametrize("runtime", ["onnx"], indirect=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[bool]:
    """For each layer that tiles were asked for, whether it is of a doubled picture."""
    told: list[bool] = []

    def spied(*given: Any, doubled: bool) -> winograd.Tiles | None:
        told.append(doubled)
        return winograd.tiles_for(*given, doubled=doubled)

    monkeypatch.setattr(module, "tiles_for", spied)
    return told


def assert_alike(given: np.ndarray, expected: np.ndarray) -> None:
    """To float32's rounding, which F4 makes some ten times larger in each layer."""
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 2e-5 * np.ptp(expected)


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 37, 50), (3, 8, 9), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("resized", [None, DOUBLING], ids=["plain", "doubled"])
def test_a_model_for_any_size_gives_what_the_convolutions_give(
    layer: Callable[..., Layer], asked: list[bool], size: tuple[int, int, int], resized: dict[str, Any] | None
) -> None:
    one = layer(resized=resized)
    made, count = one.run(size)
    expected, none = one.run(size, winograd=False)
    assert (count, none) == (2, 0)
    assert asked == [resized is not None, False]
    assert_alike(made, expected)


@on_openvino
@pytest.mark.parametrize("resized", [None, DOUBLING], ids=["plain", "doubled"])
def test_a_static_session_chooses_for_each_size(layer: Callable[..., Layer], resized: dict[str, Any] | None) -> None:
    one = layer(resized=resized)
    one.component = replace(one.component, shapes={})  # so that nothing is compiled before the first call
    sizes = [(1, 64, 64), (2, 8, 9), (2, 50, 37)]
    for last, rewritten in zip(range(1, 4), (2, 0, 2), strict=True):
        made, count = one.run(*sizes[:last], static=True)
        assert count == rewritten
        assert_alike(made, one.run(sizes[last - 1], static=True, winograd=False)[0])


@pytest.mark.parametrize("tiles", [winograd.F2, winograd.F4, winograd.DOUBLED], ids=["F2", "F4", "doubled"])
@pytest.mark.parametrize("times", [1, 3, 7])
def test_tiles_and_parts_change_nothing(
    layer: Callable[..., Layer], monkeypatch: pytest.MonkeyPatch, module: Any, tiles: winograd.Tiles, times: int
) -> None:
    one = layer(resized=DOUBLING)
    monkeypatch.setattr(module, "parts", lambda *_: times)
    monkeypatch.setattr(
        module, "tiles_for", lambda *_, doubled: tiles if doubled == (tiles is winograd.DOUBLED) else None
    )
    for size in [(1, 64, 64), (2, 3, 4)]:  # of the second, with fewer tiles than parts
        made, count = one.run(size)
        assert count == 1
        assert_alike(made, one.run(size, winograd=False)[0])


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_that_are_stored_in_16_bits_are_read_as_they_are_computed(
    layer: Callable[..., Layer], stored: str
) -> None:
    one = layer(stored=stored)
    made, count = one.run()
    assert count == 2
    assert_alike(made, one.run(winograd=False)[0])


def test_a_changed_weight_is_what_it_computes_with(layer: Callable[..., Layer]) -> None:
    one = layer()
    changed = {"conv.weight": np.random.default_rng(5).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)}
    made, count = one.run(overrides=changed)
    assert count == 2
    assert_alike(made, one.run(overrides=changed, winograd=False)[0])
    assert np.abs(made - one.run()[0]).max() > 1


@pytest.mark.parametrize(
    "resized",
    [
        {**DOUBLING, "nearest_mode": "ceil"},
        {**DOUBLING, "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ],
    ids=["ceil", "corners", "linear"],
)
def test_a_picture_that_was_resized_otherwise_is_not_taken_for_a_doubled_one(
    layer: Callable[..., Layer], asked: list[bool], resized: dict[str, Any]
) -> None:
    one = layer(resized=resized)
    made, count = one.run((1, 33, 40))
    assert (asked, count) == ([False, False], 2)
    assert_alike(made, one.run((1, 33, 40), winograd=False)[0])


@pytest.mark.parametrize(
    "attributes",
    [{"strides": [2, 2]}, {"dilations": [2, 2], "pads": [2] * 4}, {"pads": [0] * 4}, {"pads": [0, 0, 1, 1]}],
    ids=["strides", "dilations", "no border", "one border"],
)
def test_other_convolutions_stay_as_they_are(layer: Callable[..., Layer], attributes: dict[str, Any]) -> None:
    assert layer(**attributes).run()[1] == 0


def test_weights_in_few_bits_stay_as_they_are(layer: Callable[..., Layer]) -> None:
    one = layer(stored="int8")
    made, count = one.run()
    assert count == 1, "the second one, whose weight is float32"
    assert_alike(made, one.run(winograd=False)[0])


@on_openvino
def test_a_graph_that_computes_in_float16_stays_as_it_is(module: Any) -> None:
    import openvino as ov

    x = ov.opset13.parameter([1, CHANNELS, 64, 64], np.float16)
    kernel = ov.opset13.constant(np.ones((CHANNELS, CHANNELS, 3, 3), np.float16))
    ones = [1, 1]
    model = ov.Model([ov.opset13.convolution(x, kernel, ones, ones, ones, ones)], [x])
    assert module.fewer_products(model, None) == 0


def test_it_is_left_where_it_was_refused(layer: Callable[..., Layer]) -> None:
    one = layer()
    assert one.run(winograd=False)[1] == 0
    assert one.run(arena=False)[1] == 2


def test_without_prepacking_onnx_runtime_copies_no_weights(layer: Callable[..., Layer], runtime: str) -> None:
    assert layer().run(prepack=False)[1] == (0 if runtime == "onnx" else 2), "it does nothing in OpenVINO"


@on_onnx
def test_it_is_left_where_weights_are_held_in_part(layer: Callable[..., Layer]) -> None:
    assert layer().run(resident_weights=1000)[1] == 0


@on_onnx
def test_a_small_model_stays_as_it_is(layer: Callable[..., Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer()
    both = 2 * 4 * 9 * CHANNELS**2
    for least, count in ((both, 2), (both + 1, 0)):
        monkeypatch.setattr(ort_winograd, "_LEAST", least)
        assert one.run()[1] == count


@on_onnx
def test_without_onnx_it_is_left_out_and_told(layer: Callable[..., Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer()
    monkeypatch.setitem(sys.modules, "onnx.shape_inference", None)
    session = one.runtime.open(one.component, CPU, Options())
    assert session.details["winograd"] == 0
    assert "pip install onnx" in session.left_out["winograd"]
    assert one.runtime.open(one.component, CPU, Options(winograd=False)).left_out == {}


@on_onnx
@pytest.mark.parametrize("opset", [17, 18])
def test_a_graph_of_an_older_opset_stays_as_it_is(layer: Callable[..., Layer], opset: int) -> None:
    one = layer(resized=DOUBLING)
    with one.edited() as model:
        model.opset_import[0].version = opset
    made, count = one.run((2, 9, 8))
    assert count == (2 if opset == 18 else 0)
    assert_alike(made, one.run((2, 9, 8), winograd=False)[0])


@on_onnx
def test_initializers_that_are_inputs_too_are_taken_for_what_they_are(layer: Callable[..., Layer]) -> None:
    one = layer()
    with one.edited() as model:
        shape = [CHANNELS, CHANNELS, 3, 3]
        model.graph.input.append(helper.make_tensor_value_info("conv.weight", TensorProto.FLOAT, shape))
        model.graph.input.append(helper.make_tensor_value_info("conv.bias", TensorProto.FLOAT, [CHANNELS]))
    model = onnx.load(one.component.graph_path, load_external_data=False)
    made = ort_winograd.fewer_products(model, one.component, {})
    assert made is not None
    assert (made.layers, [value.name for value in model.graph.input]) == (2, ["x", "conv.bias"])


@on_onnx
def test_a_convolution_behind_what_no_rank_is_known_of_stays_as_it_is(layer: Callable[..., Layer]) -> None:
    one = layer()
    with one.edited() as model:
        model.graph.node.insert(1, helper.make_node("FastGelu", ["middle"], ["bent"], domain="com.microsoft"))
        model.graph.node[2].input[0] = "bent"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made, count = one.run()
    assert count == 1
    assert_alike(made, one.run(winograd=False)[0])


@on_onnx
def test_a_graph_with_other_inputs_than_the_manifest_s_is_refused_in_words(layer: Callable[..., Layer]) -> None:
    one = layer()
    one.component = replace(one.component, inputs={"picture": one.component.inputs["x"]})
    with pytest.raises(BadArtifact, match="has the inputs x; the manifest says picture"):
        one.runtime.open(one.component, CPU, Options())


def test_a_weight_of_two_layers_is_that_of_both(layer: Callable[..., Layer]) -> None:
    one = layer(resized=DOUBLING)
    with one.edited() as model:
        model.graph.node[2].input[1] = "conv.weight"
    made, count = one.run((2, 9, 8))
    assert count == 2
    assert_alike(made, one.run((2, 9, 8), winograd=False)[0])


@on_onnx
def test_a_graph_with_inner_ones_stays_as_it_is(layer: Callable[..., Layer]) -> None:
    one = layer()
    inner = helper.make_graph(
        [helper.make_node("Identity", ["middle"], ["read"])],
        "inner",
        [],
        [helper.make_tensor_value_info("read", TensorProto.FLOAT, None)],
    )
    with one.edited() as model:
        model.graph.node.extend(
            [
                helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner),
                helper.make_node("Add", ["y", "chosen"], ["sum"]),
            ]
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.output[0].name = "sum"
    one.component = replace(one.component, outputs={"sum": one.component.outputs["y"]})
    session = one.runtime.open(one.component, CPU, Options())
    assert session.details["winograd"] == 0
    assert session.run({"x": np.ones((1, CHANNELS, 64, 64), np.float32)})["sum"].shape == (1, CHANNELS, 64, 64)


@on_onnx
def test_weights_whose_file_ends_too_soon_are_told(layer: Callable[..., Layer]) -> None:
    one = layer()
    file = one.component.root / "w.bin"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadArtifact, match=r"w\.bin"):
        one.runtime.open(one.component, CPU, Options())


@on_openvino
def test_it_is_left_where_it_would_be_rounded(layer: Callable[..., Layer]) -> None:
    import openvino as ov

    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor with bfloat16")
    assert layer().run(precision="bfloat16")[1] == 0


def test_a_model_for_any_size_stays_as_it_is_where_no_usual_one_is_known(layer: Callable[..., Layer]) -> None:
    one = layer()
    one.component = replace(one.component, shapes={})
    assert one.run()[1] == 0


def test_a_kept_model_is_of_its_own_kind(
    layer: Callable[..., Layer], runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    one = layer()
    first, count = one.run(cache=True)
    plain, none = one.run(cache=True, winograd=False)
    assert (count, none) == (2 if runtime == "openvino" else 0, 0), "ONNX Runtime opens what it has just kept"
    (usual, count), none = one.run(), one.run(winograd=False)[1]
    assert (count, none) == (2, 0)
    np.testing.assert_array_equal(usual, first)
    np.testing.assert_array_equal(one.run(cache=True)[0], first)
    np.testing.assert_array_equal(one.run(cache=True, winograd=False)[0], plain)
    assert np.any(first != plain)
