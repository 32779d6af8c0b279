"""The comparison of two sessions: its numbers are right, and what computes something else does not pass."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.errors import ProofFailed
from vitrify.core.registry import load_runtime
from vitrify.core.tensors import Array, DType, TensorSpec
from vitrify.proof.numeric import summary
from vitrify.proof.parity import TOLERANCE, compare, parity, require, sample_inputs
from vitrify.runtimes.base import Options, Placement

SIZES = {"batch": 2}
RAMP = np.linspace(-1, 1, 5, dtype=np.float32)


def test_the_numbers_are_what_they_are_called() -> None:
    found = compare("y", np.array([0.0, 1.0, -3.0]), np.array([0.0, 1.5, -3.0]), SIZES)
    assert found.max_abs == 0.5
    assert found.range == 4.0
    assert found.relative == 0.125
    assert found.cosine == pytest.approx((1.5 + 9) / math.sqrt(10 * (2.25 + 9)))
    assert found.snr_db == pytest.approx(10 * math.log10(10 / 0.25))
    assert not found.passed


def test_equal_is_equal() -> None:
    found = compare("y", RAMP, RAMP.copy(), SIZES)
    assert (found.max_abs, found.snr_db, found.passed) == (0.0, math.inf, True)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(("share", "passed"), [(0.9, True), (1.1, False)])
def test_the_tolerance_is_a_share_of_the_range(share: float, passed: bool) -> None:
    for scale in (1e-6, 1.0, 1e6):
        reference = RAMP.astype(np.float64) * scale + 5 * scale
        given = reference.copy()
        given[2] += share * TOLERANCE * 2 * scale
        assert compare("y", reference, given, SIZES).passed is passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["given", "both"])
def test_what_is_not_finite_fails_also_beside_its_like(bad: float, where: str) -> None:
    given = np.where(np.arange(5) == 3, bad, RAMP)
    found = compare("y", given if where == "both" else RAMP, given, SIZES)
    assert not found.passed
    with pytest.raises(ProofFailed, match=r"unet: y at \{'batch': 2\} holds NaN or infinity"):
        require("unet", [found])


@pytest.mark.parametrize(("off", "passed"), [(0.0, True), (1e-5, True), (1e-3, False)])
def test_an_output_of_one_number_is_held_against_its_size(off: float, passed: bool) -> None:
    assert compare("y", np.array([[2.0]]), np.array([[2.0 + off]]), SIZES).passed is passed


def test_zeros_are_only_equal_to_zeros() -> None:
    assert compare("y", np.zeros(3), np.zeros(3), SIZES).passed
    assert not compare("y", np.zeros(3), np.array([0, 0, 1e-30]), SIZES).passed


def test_another_shape_is_a_baked_size() -> None:
    with pytest.raises(ProofFailed, match=r"y has shape \[1, 6\] at \{'batch': 2\}, the reference \[2, 3\].*baked"):
        compare("y", np.zeros((2, 3)), np.zeros((1, 6)), SIZES)


def test_nothing_is_no_proof() -> None:
    with pytest.raises(ProofFailed, match="y is empty"):
        compare("y", np.zeros((0, 3)), np.zeros((0, 3)), SIZES)


@pytest.mark.parametrize("given", [RAMP, RAMP + 1, RAMP * np.nan])
def test_the_manifest_stays_json(given: Array) -> None:
    data = compare("y", RAMP, given, SIZES).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["passed"] is (given is RAMP)


def test_the_worst_is_named() -> None:
    good, bad = compare("a", RAMP, RAMP, SIZES), compare("b", RAMP, RAMP + np.float32(0.01), SIZES)
    worse = compare("c", RAMP, RAMP + np.float32(0.5), {"batch": 7})
    require("unet", [good])
    with pytest.raises(ProofFailed, match=r"unet: c at \{'batch': 7\} is off by 0.5, 0.25 of its range; 0.0001"):
        require("unet", [good, bad, worse])


def test_inputs_are_drawn_as_the_manifest_says() -> None:
    specs = {
        "ids": TensorSpec(DType.INT64, ("batch", "tokens")),
        "step": TensorSpec(DType.FLOAT32, ()),
        "image": TensorSpec(DType.FLOAT32, ("batch", 3)),
    }
    component = Component("c", "onnx", "g", specs, {}, details={"samples": {"ids": [5, 7], "step": [0, 999]}})
    drawn = sample_inputs(component, {"batch": 64, "tokens": 9})
    assert {n: (v.dtype.name, v.shape) for n, v in drawn.items()} == {
        "ids": ("int64", (64, 9)),
        "step": ("float32", ()),
        "image": ("float32", (64, 3)),
    }
    assert set(np.unique(drawn["ids"])) == {5, 6, 7}
    assert drawn["step"] == int(drawn["step"])
    assert abs(drawn["image"].std() - 1) < 0.2
    again, other = (sample_inputs(component, {"batch": 64, "tokens": 9}, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(drawn["image"], again["image"])
    assert not np.array_equal(drawn["image"], other["image"])


# With real sessions.


def opened(component: Component) -> Any:
    return load_runtime("torch" if component.format == "torch" else "onnx").open(component, Device("cpu"), Options())


def test_an_export_passes(unet_model: Any) -> None:
    component = unet_model.components["onnx"]
    checks = component.details["checks"]
    found = parity(component, opened(unet_model.components["torch"]), opened(component), checks)
    assert [(p.output, p.sizes) for p in found] == [("out_sample", dict(c)) for c in checks]
    assert all(p.passed and p.max_abs > 0 for p in found)
    require("unet", found)


def changed(model: Any, root: Path, change: Any) -> Component:
    """The component with a checkpoint whose bytes were changed."""
    shutil.copytree(model.components["onnx"].root, root)
    component = replace(model.components["onnx"], root=root)
    path = root / component.weights[0].path
    data = bytearray(path.read_bytes())
    change(data, model.entries)
    path.write_bytes(data)
    return component


def flip_sign(data: bytearray, entries: Mapping[str, Any]) -> None:
    data[entries["classifier.bias"].offset + 3] ^= 0x80


def swap_query_and_value(data: bytearray, entries: Mapping[str, Any]) -> None:
    a, b = (entries[f"vit.layers.0.attention.{n}_proj.weight"] for n in "qv")
    here, there = slice(a.offset, a.offset + a.length), slice(b.offset, b.offset + b.length)
    data[here], data[there] = data[there], data[here]


@pytest.mark.parametrize("change", [flip_sign, swap_query_and_value])
def test_one_byte_or_two_tensors_exchanged_fail(vit_model: Any, tmp_path: Path, change: Any) -> None:
    component = changed(vit_model, tmp_path / "a", change)
    reference = opened(vit_model.components["torch"])
    found = parity(component, reference, opened(component), component.details["checks"])
    with pytest.raises(ProofFailed, match=r"model: logits at \{'batch': \d\} is off by"):
        require("model", found)


class Module:
    """A torch module as a session: what the exported graphs below are held against."""

    placement = Placement("torch", "eager", "cpu", "float32")

    def __init__(self, component: Component, module: Any) -> None:
        self.inputs, self.outputs, self.module = component.inputs, component.outputs, module

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            return {"y": self.module(torch.from_numpy(tensors["x"])).numpy()}

    def close(self) -> None: ...


def baked(how: str, path: Path) -> tuple[Component, Module]:
    """A module traced at batch 2 and 4 tokens, its sizes renamed to symbols afterwards as if they were free."""
    torch = pytest.importorskip("torch", reason="needs vitrify[export]")
    onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
    from vitrify.export.graph import quiet

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            if how == "reshape":
                return x.reshape(x.shape[0], x.shape[1] * 6).softmax(1).reshape(x.shape)
            if how == "shape":
                return x.sum(0, keepdim=True) + torch.ones(x.shape)
            return x - x.sum(1, keepdim=True) / x.shape[1]

    with quiet():
        program = torch.onnx.export(
            Net(), (torch.randn(2, 4, 6),), dynamo=True, input_names=["x"], output_names=["y"], verbose=False
        )
        program.save(str(path))
    graph = onnx.load(path)
    for value in (graph.graph.input[0], graph.graph.output[0]):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "tokens"), strict=False):
            dim.dim_param = name
    del graph.graph.value_info[:]
    onnx.save(graph, path)
    spec = {"x": TensorSpec(DType.FLOAT32, ("batch", "tokens", 6))}
    component = Component("net", "onnx", path.name, spec, {"y": spec["x"]}, root=path.parent)
    return component, Module(component, Net().eval())


TRACED = {"batch": 2, "tokens": 4}


@pytest.mark.parametrize(
    ("how", "second", "said"),
    [
        ("reshape", {"batch": 3, "tokens": 5}, r"net does not run at .*'tokens': 5.*where the reference does"),
        ("shape", {"batch": 3, "tokens": 4}, r"y has shape \[2, 4, 6\] at .*the reference \[3, 4, 6\].*baked"),
        ("number", {"batch": 2, "tokens": 5}, r"net: y at .*'tokens': 5.* is off by"),
    ],
    ids=["cannot run", "another shape", "other numbers"],
)
def test_a_baked_size_is_caught_at_the_second_size(tmp_path: Path, how: str, second: Any, said: str) -> None:
    component, reference = baked(how, tmp_path / "net.onnx")
    session = opened(component)
    require("net", parity(component, reference, session, [TRACED]))
    with pytest.raises(ProofFailed, match=said):
        require("net", parity(component, reference, session, [TRACED, second]))


def test_of_what_holds_no_numbers_there_is_no_least() -> None:
    good, bad = compare("y", RAMP, RAMP + 1e-7, SIZES), compare("y", RAMP, RAMP * np.nan, SIZES)
    for found in ([good, bad], [bad, good]):
        said = summary(found, "torch float32")
        assert (said["cosine"], said["snr_db"], said["max_abs"]) == (None, None, None)
