"""Weights outside a plan: which they are, that their bytes make the same model, and what is wrong with them is told.

A plan cannot be run here. What it takes from outside can: the very graph that TensorRT is given, with its weights as
inputs, is run by ONNX Runtime on the bytes that the adapter would put there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, DeviceError, UsageError  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402
from vitrify.export.plan_network import _changed, parse  # noqa: E402
from vitrify.export.plan_options import PlanOptions  # noqa: E402
from vitrify.export.plan_weights import mark_refittable, outside_weights  # noqa: E402
from vitrify.export.quantize import quantize_weights  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.runtimes.cuda import find_gpus  # noqa: E402
from vitrify.runtimes.low_rank import LowRank  # noqa: E402
from vitrify.runtimes.plan_weights import PlanWeight, changed_weights, plan_weights, stored_bytes  # noqa: E402
from vitrify.runtimes.stored import stored_weights  # noqa: E402
from vitrify.runtimes.trt_engine import made, message_log  # noqa: E402

APART = PlanOptions(apart=True)
RNG = np.random.default_rng(0)


def gpu_here() -> bool:
    try:
        return bool(find_gpus())
    except DeviceError:
        return False


@pytest.fixture(scope="module")
def labels_source(emotions_artifact: Path) -> Component:
    """The built-in classifier in ONNX, whose weights are float16."""
    return Artifact.load(emotions_artifact).components["model"]


@pytest.fixture(scope="module")
def apart(labels_source: Component, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(labels_source, tmp_path_factory.mktemp("apart"), options=APART)


# a plan whose weights are inputs -------------------------------------------------------------------------------------


def test_a_plan_apart_has_no_weights_and_lists_their_files(labels_source: Component, apart: Component) -> None:
    whole = sum(w.bytes for w in labels_source.weights)
    plan, *files = apart.weights
    assert (plan.path, [f.path for f in files]) == (apart.graph, [w.path for w in labels_source.weights])
    assert [f.sha256 for f in files] == [w.sha256 for w in labels_source.weights]
    data = apart.graph_path.read_bytes()
    table = plan_weights(apart)
    matrix = next(n for n in table if n.endswith("0.mlp.fc1.weight") or n.endswith("0.intermediate.dense.weight"))
    held = np.asarray(stored_bytes(labels_source, outside_weights(labels_source, "apart")[matrix])).tobytes()
    assert held[:256] not in data
    assert set(table) == set(outside_weights(labels_source, "apart"))
    for weight, source in zip(files, labels_source.weights, strict=True):
        assert (apart.root / weight.path).samefile(labels_source.root / source.path), "linked, not copied"
    assert sum(w.nbytes for w in table.values()) <= whole
    engine = apart.details["engine"]
    assert (engine["weight_inputs"], engine["refittable"], engine["flags"]) == (len(table), 0, [])
    assert apart.details["arguments"] == ["--apart"]


def test_it_is_smaller_by_its_weights(labels_source: Component, apart: Component, tmp_path: Path) -> None:
    """A plan holds code too, and float16 weights twice where it computes in float32."""
    inside = build_plan(labels_source, tmp_path)
    stored = sum(w.bytes for w in labels_source.weights)
    assert inside.weights[0].bytes - apart.weights[0].bytes > 1.3 * stored


def test_its_manifest_is_loaded_with_checksums(apart: Component, tmp_path: Path) -> None:
    told = (
        {"architecture": "ViT", "source": "here"},
        {"family": "image-classification", "tasks": ["image-classification"]},
    )
    Artifact(apart.root, "id", *told, {"model": apart}).save()
    loaded = Artifact.load(apart.root, checksums=True).components["model"]
    assert loaded == apart
    assert plan_weights(loaded) == plan_weights(apart)


def session_of(model: Any) -> Any:
    """ONNX Runtime's session. It would round activations to int8 in front of weights in few bits: not here."""
    ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def computed(source: Component, precision: str, inputs: Mapping[str, np.ndarray], weights: Mapping[str, Any]) -> Any:
    """ONNX Runtime's outputs of the graph that TensorRT is given, its weights as inputs."""
    table = outside_weights(source, "apart")
    model = _changed(source.graph_path, precision, table)
    assert all(i.data_location != onnx.TensorProto.EXTERNAL for i in onnx.load_from_string(model).graph.initializer)
    session = session_of(model)
    wanted = {i.name for i in session.get_inputs()}
    assert wanted == {*source.inputs, *(name for name in table if name in wanted)}
    given = {name: np.asarray(value) for name, value in weights.items() if name in wanted}
    return dict(zip(source.outputs, session.run(list(source.outputs), {**inputs, **given}), strict=True))


def bytes_of(source: Component, table: Mapping[str, PlanWeight], changed: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapter puts into the plan's inputs."""
    found = {name: array for name, _, array in changed_weights(source, table, changed, "TensorRT-RTX")}
    return {name: found.get(name, stored_bytes(source, weight)) for name, weight in table.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_the_graph_and_the_bytes_make_the_model(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Any], same: Any, name: str, dtype: str
) -> None:
    model = checkpoint(request.getfixturevalue(name), dtype=dtype)
    source = model.components["onnx"]
    inputs = sample_inputs(source, source.details["checks"][1], seed=1)
    weights = bytes_of(source, outside_weights(source, "apart"), {})
    same(computed(source, "float32", inputs, weights), model.reference(inputs))


@pytest.fixture(scope="module")
def same() -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]:
    def check(given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
        assert list(given) == list(expected)
        for key, value in expected.items():
            assert np.ptp(value) > 0.01
            np.testing.assert_allclose(given[key], value, rtol=0, atol=1e-4 * np.ptp(value))

    return check


def test_changed_weights_are_the_models_own_with_that_change(vit_model: Any, same: Any) -> None:
    """Each opening starts from the files: what was changed before is not in it."""
    source = vit_model.components["onnx"]
    table = outside_weights(source, "apart")
    inputs = sample_inputs(source, source.details["checks"][0], seed=0)
    before = bytes_of(source, table, {})
    name = next(n for n, w in table.items() if len(w.shape) == 2)
    value = np.asarray(before[name], np.float32) + RNG.normal(0, 0.3, table[name].shape).astype(np.float32)
    changed = {name: value}
    with_change = computed(source, "float32", inputs, bytes_of(source, table, changed))
    same(with_change, vit_model.reference(inputs, changed))
    same(computed(source, "float32", inputs, bytes_of(source, table, {})), vit_model.reference(inputs))
    (key,) = source.outputs
    assert np.abs(with_change[key] - vit_model.reference(inputs)[key]).max() > 1e-3


def test_int8_weights_stay_apart_with_their_scales(labels_source: Component, tmp_path: Path) -> None:
    small = quantize_weights(labels_source, recipe("int8-weights"), tmp_path / "onnx")
    table = outside_weights(small, "apart")
    kinds = {w.dtype for w in table.values()}
    assert {"int8", "float32"} <= kinds
    inputs = sample_inputs(small, small.details["checks"][0], seed=0)
    expected = session_of(str(small.graph_path)).run(None, inputs)[0]
    (given,) = computed(small, "float32", inputs, bytes_of(small, table, {})).values()
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.ptp(expected))
    plan = build_plan(small, tmp_path / "plan", options=APART)
    assert plan.precision["weights"] == "int8"
    assert len(plan_weights(plan)) == plan.details["engine"]["weight_inputs"]


@pytest.mark.parametrize("id", ["int4-weights", "fp8"])
def test_types_that_tensorrt_takes_no_input_of_are_refused(labels_source: Component, tmp_path: Path, id: str) -> None:
    small = quantize_weights(labels_source, recipe(id), tmp_path / "onnx")
    with pytest.raises(BadInput, match=r"is (int4|float8_e4m3fn) that cannot stay outside.*use int8-weights"):
        build_plan(small, tmp_path / "plan", options=APART)
    assert not (tmp_path / "plan").exists()


# refit ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Callable[..., Iterator[Any]]:
    """network(component, precision): TensorRT's own network of a graph, as a build would have it."""
    kept: list[Any] = []

    def make(component: Component, precision: str = "float32") -> Any:
        log = message_log(trt)
        builder = made(trt.Builder, log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        parse(parser, component, precision, "TensorRT-RTX", {})
        kept.extend([log, builder, parser])
        return network

    return make


FORMS = [
    ("fp32", "float32"), ("fp32", "float16"), ("fp32", "bfloat16"), ("int8-weights", "float32"),
    ("int8-weights", "float16"), ("int4-weights", "float16"), ("fp8", "float32"),
]  # fmt: skip


@pytest.mark.parametrize(("id", "precision"), FORMS)
def test_every_weight_is_in_the_network_under_its_own_name_type_and_shape(
    labels_source: Component, network: Any, tmp_path: Path, id: str, precision: str
) -> None:
    """So a refit takes the bytes of the files as they are: a cast or a transposition of them is inside the network."""
    source = labels_source if id == "fp32" else quantize_weights(labels_source, recipe(id), tmp_path)
    table = outside_weights(source, "refit")
    made = network(source, precision)
    mark_refittable(trt, made, table, source.graph)
    assert [name for name in table if not made.are_weights_marked_refittable(name)] == []
    constants = {made.get_layer(n).name for n in range(made.num_layers) if made.get_layer(n).type.name == "CONSTANT"}
    assert len(constants & set(table)) > 0.9 * len(table), "convolutions hold theirs themselves"
    floats = {name for name, one in stored_weights(replace(source)).items() if one.entry is not None}
    assert floats <= set(table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {"nothing.weight": next(iter(w.values()))}, r"no weight nothing\.weight .*could be refitted \(1"),
        (lambda w: {n: replace(v, dtype="float32") for n, v in w.items()}, r"as float16 .*its file as float32"),
        (lambda w: {n: replace(v, shape=(*v.shape, 2)) for n, v in w.items()}, r"its file as float16 \[.*2\]"),
    ],
    ids=["name", "type", "shape"],
)
def test_weights_that_are_not_the_networks_are_told(
    labels_source: Component, network: Any, change: Callable[[Any], Any], said: str
) -> None:
    table = outside_weights(labels_source, "refit")
    with pytest.raises(BadInput, match=said):
        mark_refittable(trt, network(labels_source), change(table), labels_source.graph)


@pytest.mark.skipif(gpu_here(), reason="tells what happens where there is no NVIDIA GPU")
@pytest.mark.parametrize("options", [PlanOptions(refit=True), PlanOptions(strip=True)], ids=["refit", "strip"])
def test_a_refittable_plan_wants_a_gpu_and_says_so(
    labels_source: Component, tmp_path: Path, options: PlanOptions
) -> None:
    """The library compiles what a refit does to the weights while it builds, and loads it into a GPU."""
    with pytest.raises(DeviceError, match=r"refittable plans on an NVIDIA GPU alone.*give --apart"):
        build_plan(labels_source, tmp_path, options=options)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


# what is wrong -------------------------------------------------------------------------------------------------------


def test_a_file_that_ends_early_is_told_when_it_is_built_and_when_it_is_read(
    labels_source: Component, apart: Component, tmp_path: Path
) -> None:
    table = plan_weights(apart)
    last = max(table.values(), key=lambda w: w.offset)
    (tmp_path / last.path).parent.mkdir(exist_ok=True, parents=True)
    data = (apart.root / last.path).read_bytes()[: last.offset + last.nbytes - 1]
    for component in (apart, labels_source):
        for weight in component.weights[-1:]:
            (tmp_path / weight.path).write_bytes(data)
    with pytest.raises(BadArtifact, match=r"cannot be read up to its end"):
        stored_bytes(replace(apart, root=tmp_path), last)
    (tmp_path / labels_source.graph).write_bytes(labels_source.graph_path.read_bytes())
    with pytest.raises(BadArtifact, match=r"model\.safetensors ends before"):
        build_plan(replace(labels_source, root=tmp_path), tmp_path / "out", options=APART)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.pop("files"),
        lambda t: t.update(files=["../secret"]),
        lambda t: t["table"].update(x=[7, "float32", [1], 0]),
        lambda t: t["table"].update(x=[0, "float128", [1], 0]),
        lambda t: t["table"].update(x=[0, "float32", [-1], 0]),
        lambda t: t["table"].update(x=[0, "float32", [4], -4]),
        lambda t: t["table"].update(x=[0, "float32", [10**9], 0]),
        lambda t: t["table"].update(x=7),
    ],
)
def test_a_damaged_table_of_the_manifest_is_refused(apart: Component, damage: Callable[[Any], Any]) -> None:
    told = json.loads(json.dumps(apart.details["outside"]))
    damage(told)
    with pytest.raises(BadArtifact, match=r"manifest's weights of model are damaged"):
        plan_weights(replace(apart, details=apart.details | {"outside": told}))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda n, s: {f"{n}s": np.zeros(s, np.float32)}, BadInput, r"no such weight"),
        (lambda n, s: {n: np.zeros((*s, 2), np.float32)}, BadInput, r"has shape .*expected"),
        (lambda n, s: {n: LowRank(np.zeros((2, s[1]), np.float32), np.zeros((s[0], 2), np.float32))}, UsageError,
         r"adds nothing beside a layer"),
    ],
    ids=["name", "shape", "branch"],
)  # fmt: skip
def test_changes_that_fit_no_weight_are_told(
    apart: Component, make: Callable[..., Any], error: type[Exception], said: str
) -> None:
    table = plan_weights(apart)
    name, weight = next((n, w) for n, w in table.items() if len(w.shape) == 2)
    with pytest.raises(error, match=said):
        list(changed_weights(apart, table, make(name, weight.shape), "TensorRT-RTX"))


def test_a_plan_that_holds_its_weights_names_what_would_let_go_of_them(vit_model: Any, tmp_path: Path) -> None:
    plan = build_plan(vit_model.components["onnx"], tmp_path)
    assert plan_weights(plan) == {}
    with pytest.raises(UsageError, match=r"whose weights cannot be changed.*--refit.*--apart"):
        stored_weights(plan)


def test_a_lora_finds_the_weights_of_a_plan_apart(labels_source: Component, apart: Component) -> None:
    found, known = stored_weights(apart), stored_weights(labels_source)
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in known.items() if w.entry is not None}
    for name, weight in found.items():
        assert weight.entry is not None
        source = known[name].entry
        assert source is not None
        assert (weight.entry.dtype, weight.entry.offset) == (source.dtype, source.offset)
