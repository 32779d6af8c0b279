"""What is ONNX Runtime's own: its exceptions, its cache of optimized graphs, graphs that alias their buffers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitrify.core.artifact import Component, WeightFile, hash_file  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, VitrifyError  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.ort import RUNTIME  # noqa: E402
from vitrify.runtimes.ort_errors import translated  # noqa: E402

STATE = ort.capi.onnxruntime_pybind11_state
EXCEPTIONS = [v for v in vars(STATE).values() if isinstance(v, type) and issubclass(v, BaseException)]
X = TensorSpec(DType.FLOAT32, ("n", 3))
CPU = Device("cpu")


def graph(path: Path, nodes: list[Any], outputs: dict[str, Any], weights: list[Any] = (), opset: int = 21) -> Component:
    """A graph of x [n, 3] and its component."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s.shape)) for n, s in outputs.items()],
        list(weights),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)
    return Component("g", "onnx", path.name, {"x": X}, outputs, root=path.parent)


@pytest.mark.parametrize("device", [None, "cpu", "cuda"], ids=["running", "opening", "opening on a GPU"])
@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda e: e.__name__)
def test_every_exception_of_the_library_is_translated(exception: type[BaseException], device: str | None) -> None:
    component = Component("unet", "onnx", "unet/model.onnx", {}, {})
    with (
        pytest.raises(VitrifyError) as caught,
        translated(component, Device(device) if device else None),
    ):
        raise exception("the library's words")
    assert isinstance(caught.value.__cause__, exception)
    assert "the library's words" in caught.value.what
    assert "unet" in caught.value.what or "ONNX Runtime" in caught.value.what
    assert caught.value.fix


def test_there_are_exceptions_to_translate() -> None:
    assert {"Fail", "InvalidArgument", "NoSuchFile", "EPFail"} <= {e.__name__ for e in EXCEPTIONS}


def test_memory_that_runs_out_says_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Constant", [], ["many"], value=numpy_helper.from_array(np.array([1 << 45]))),
        helper.make_node("Mul", ["s", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["y"]),
    ]
    component = graph(tmp_path / "huge.onnx", nodes, {"y": TensorSpec(DType.FLOAT32, ("m",))})
    session = RUNTIME.open(component, CPU, Options())
    with pytest.raises(RuntimeFailure, match=r"g ran out of memory: .*smaller size or batch"):
        session.run({"x": np.ones((1, 3), np.float32)})


def test_an_index_out_of_range_is_the_inputs_fault(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["y"]),
    ]
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
    session = RUNTIME.open(graph(tmp_path / "g.onnx", nodes, {"y": X}, [table]), CPU, Options())
    with pytest.raises(BadInput, match="g refused its inputs"):
        session.run({"x": np.full((1, 3), 9, np.float32)})


@pytest.mark.parametrize(
    ("nodes", "opset", "said"),
    [
        ([helper.make_node("NoSuchOp", ["x"], ["y"])], 21, "NoSuchOp"),
        ([helper.make_node("Add", ["x", "nothing"], ["y"])], 21, "nothing"),
        ([helper.make_node("Identity", ["x"], ["y"])], 999, "too new for ONNX Runtime"),
    ],
    ids=["operator", "dangling input", "opset"],
)
def test_a_graph_that_cannot_be_is_a_bad_artifact(tmp_path: Path, nodes: list[Any], opset: int, said: str) -> None:
    with pytest.raises(BadArtifact, match=said):
        RUNTIME.open(graph(tmp_path / "g.onnx", nodes, {"y": X}, opset=opset), CPU, Options())


def test_a_graph_that_the_manifest_does_not_describe_is_refused(tmp_path: Path) -> None:
    component = graph(tmp_path / "g.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"y": X})
    with pytest.raises(BadArtifact, match=r"has the inputs x; the manifest says x, mask"):
        RUNTIME.open(replace(component, inputs={"x": X, "mask": X}), CPU, Options())
    with pytest.raises(BadArtifact, match=r"has the outputs y; the manifest says z"):
        RUNTIME.open(replace(component, outputs={"z": X}), CPU, Options())


def test_outputs_that_alias_an_input_or_a_weight_belong_to_the_caller(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["z"])]
    outputs = {"y": X, "z": TensorSpec(DType.FLOAT32, (2, 3))}
    component = graph(tmp_path / "g.onnx", nodes, outputs, [numpy_helper.from_array(weight, "w")])
    session = RUNTIME.open(component, CPU, Options())
    given = np.ones((2, 3), np.float32)
    first = session.run({"x": given})
    for value in first.values():
        value[...] = 7
    np.testing.assert_array_equal(given, 1)
    np.testing.assert_array_equal(session.run({"x": given})["z"], weight)


def test_a_device_that_needs_another_wheel_names_it(tmp_path: Path) -> None:
    component = graph(tmp_path / "g.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"y": X})
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("needs a wheel of ONNX Runtime without CUDA")
    with pytest.raises(DeviceError, match=r"cannot run on cuda here; it has cpu.*onnxruntime-gpu"):
        RUNTIME.open(component, Device("cuda"), Options())


def test_a_weight_inside_the_graph_cannot_be_changed_by_name(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((3,), np.float32), "w")
    component = graph(tmp_path / "g.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], {"y": X}, [weight])
    with pytest.raises(BadInput, match=r"Override w: g.onnx has no such weight"):
        RUNTIME.open(component, CPU, Options(), {"w": np.zeros((3,), np.float32)})


def test_describe_reads_what_the_manifest_would_say(vit_model: Any, unet_model: Any) -> None:
    for model in (vit_model, unet_model):
        component = model.components["onnx"]
        inputs, outputs = RUNTIME.describe(component.graph_path)
        assert (inputs, outputs) == (dict(component.inputs), dict(component.outputs))


# The cache of optimized graphs.


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/onnxruntime"


def run(component: Component, **options: Any) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return RUNTIME.open(component, CPU, Options(**options)).run({"pixel_values": x})["logits"]


def own(model: Any, folder: Path) -> Component:
    shutil.copytree(model.components["onnx"].root, folder)
    return replace(model.components["onnx"], root=folder)


def change_bias(component: Component, entries: dict[str, Any]) -> None:
    """Another classifier bias in a file of the same size, put in the old one's place."""
    entry, path = entries["classifier.bias"], component.root / component.weights[0].path
    data = bytearray(path.read_bytes())
    data[entry.offset : entry.offset + entry.length] = np.full(5, 3.0, np.float32).tobytes()
    scratch = path.with_suffix(".new")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def test_the_optimized_graph_is_made_once_and_used(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component)
    assert not kept.exists(), "nothing is cached unless it is asked for"
    np.testing.assert_allclose(run(component, cache=True), plain, atol=1e-5)
    (entry,) = [p for p in kept.iterdir() if not p.name.startswith(".")]
    made = (entry / "model.onnx").stat().st_mtime_ns
    np.testing.assert_allclose(run(component, cache=True), plain, atol=1e-5)
    assert [p for p in kept.iterdir() if not p.name.startswith(".")] == [entry]
    assert (entry / "model.onnx").stat().st_mtime_ns == made
    # what lies in the cache is what runs: with other numbers there, other numbers come out
    data = entry / "model.onnx.data"
    if data.exists():
        data.write_bytes(bytes(data.stat().st_size))
    model = onnx.load(entry / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.data_location != TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), tensor.name))
    onnx.save(model, entry / "model.onnx")
    assert not np.allclose(run(component, cache=True), plain, atol=1e-3)


def anonymous() -> int:
    """Bytes of this process's memory that are not mapped from a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def wide(path: Path) -> Component:
    """x [n, 3] -> y [n, 4096] through 67 MB of weights, in a file beside the graph, as an artifact has them.

    So much that the C library gives it back to the system when it is freed.
    """
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(s).astype(np.float32) * np.float32(0.01) for s in ((3, 4096), (4096, 4096))]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["a"]), helper.make_node("MatMul", ["a", "w1"], ["y"])]
    weights = [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(given)]
    component = graph(path, nodes, {"y": TensorSpec(DType.FLOAT32, ("n", 4096))}, weights)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    data = path.parent / "weights.data"
    return replace(component, weights=(WeightFile("weights.data", data.stat().st_size, hash_file(data)),))


def test_sessions_of_a_kept_graph_share_the_weights_laid_out_for_them(tmp_path: Path, kept: Path) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs Linux, which tells what is mapped from files")
    component, x = wide(tmp_path / "g.onnx"), np.ones((2, 3), np.float32)
    RUNTIME.open(component, CPU, Options(cache=True)).close()

    def opened(**options: Any) -> tuple[Any, np.ndarray, int]:
        before = anonymous()
        session = RUNTIME.open(component, CPU, Options(**options))
        found = session.run({"x": x})["y"]
        return session, found, anonymous() - before

    plain, expected, own_copy = opened()
    first, found, little = opened(cache=True)
    second, again, less = opened(cache=True)
    assert own_copy > 60_000_000, "prepacking makes a copy of what is multiplied with"
    assert max(little, less) < 0.15 * own_copy
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again, expected)
    for session in (plain, first, second):
        session.close()


def test_what_prepacking_makes_is_kept_where_the_bound_allows_it(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component, x = wide(tmp_path / "g.onnx"), np.ones((2, 3), np.float32)
    weights = sum(w.bytes for w in component.weights)
    expected = RUNTIME.open(component, CPU, Options()).run({"x": x})["y"]
    sizes = []
    for share, options in ((3.0, {}), (1.5, {}), (3.0, {"prepack": False})):
        monkeypatch.setenv("VITRIFY_CACHE_MAX", str(int(share * weights)))
        shutil.rmtree(kept, ignore_errors=True)
        found = RUNTIME.open(component, CPU, Options(cache=True, **options)).run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        (entry,) = [p for p in kept.iterdir() if not p.name.startswith(".")]
        sizes.append((entry / "model.onnx.data").stat().st_size)
        assert sorted(p.name for p in entry.iterdir() if not p.name.startswith(".")) == [
            "model.onnx",
            "model.onnx.data",
        ]
    assert sizes[0] > 1.6 * weights
    assert sizes[1] < 1.1 * weights
    assert sizes[2] < 1.1 * weights


def test_another_processor_has_an_entry_of_its_own(
    vit_model: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrify.runtimes import ort_cache

    component = own(vit_model, tmp_path / "a")
    here = run(component, cache=True)
    monkeypatch.setattr(ort_cache, "processor", lambda: ["x86_64", "another", "avx512f"])
    np.testing.assert_array_equal(run(component, cache=True), here)
    assert len([p for p in kept.iterdir() if not p.name.startswith(".")]) == 2


@pytest.mark.parametrize("hashed", [True, False], ids=["a hash in the manifest", "none"])
def test_swapped_weights_of_the_same_graph_miss(vit_model: Any, tmp_path: Path, kept: Path, hashed: bool) -> None:
    component = own(vit_model, tmp_path / "a")
    if hashed:
        file = component.weights[0]
        component = replace(component, weights=(replace(file, sha256=hash_file(component.root / file.path)),))
    before = run(component, cache=True)
    change_bias(component, vit_model.entries)
    after = run(component, cache=True)
    np.testing.assert_allclose(after, run(component), atol=1e-5)
    assert np.abs(after - before).max() > 1
    assert len([p for p in kept.iterdir() if not p.name.startswith(".")]) == 2


def test_changed_weights_do_not_reach_the_cache(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component, cache=True)
    entries = sorted(kept.rglob("*"))
    changed = {"classifier.bias": np.full(5, 3.0, np.float32)}
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    got = RUNTIME.open(component, CPU, Options(cache=True), changed).run({"pixel_values": x})["logits"]
    assert np.abs(got - plain).max() > 1
    assert sorted(kept.rglob("*")) == entries
    np.testing.assert_allclose(run(component, cache=True), plain, atol=1e-5)


def test_a_graph_larger_than_the_bound_runs_uncached(
    vit_model: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "1000")
    component = own(vit_model, tmp_path / "a")
    np.testing.assert_array_equal(run(component, cache=True), run(component))
    assert not kept.exists()


def test_missing_weights_are_a_bad_artifact_with_the_cache_too(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    (component.root / component.weights[0].path).unlink()
    with pytest.raises(BadArtifact, match="cannot be read"):
        run(component, cache=True)


def test_the_cache_holds_for_a_checkpoint_in_half_precision(
    vit: Any, checkpoint: Callable[..., Any], tmp_path: Path, kept: Path
) -> None:
    component = checkpoint(vit, dtype="float16").components["onnx"]
    np.testing.assert_allclose(run(component, cache=True), run(component), atol=1e-5)
    assert kept.exists()
