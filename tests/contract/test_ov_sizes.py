"""OpenVINO models compiled for the sizes of each call: once each, the oldest go, and no number changes."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")

from vitrify.core.device import Device  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.initializers import external_bytes  # noqa: E402
from vitrify.runtimes.ov import RUNTIME  # noqa: E402

CPU = Device("cpu")


def test_sizes_are_compiled_once_and_the_oldest_go(unet_model: Any, same: Any) -> None:
    component = replace(unet_model.components["onnx"], shapes={})
    dynamic = RUNTIME.open(component, CPU, Options())
    session = RUNTIME.open(component, CPU, Options(static=True))
    assert session.details == {"cache": "off", "compiled": 0, "winograd": 0}, (
        "the manifest names no sizes to begin with"
    )
    sizes = [{"batch": 1, "height": 8, "width": 8 * n, "tokens": 77} for n in (1, 2, 3, 4, 5)]
    inputs = [sample_inputs(component, one) for one in sizes]
    expected = [dynamic.run(tensors) for tensors in inputs]

    def compiled(*numbers: int) -> int:
        for number in numbers:
            same(session.run(inputs[number]), expected[number])
        return int(session.details["compiled"])

    assert compiled(0, 0, 1, 2, 3) == 4
    assert session.placement == dynamic.placement
    assert compiled(0, 1, 2, 3) == 4
    assert compiled(4) == 5  # takes the place of 0
    assert compiled(1, 2, 3, 4) == 5
    assert compiled(0) == 6


def test_the_usual_sizes_are_compiled_when_it_opens(unet_model: Any) -> None:
    usual = {"batch": 2, "height": 16, "width": 8, "tokens": 77}
    component = replace(unet_model.components["onnx"], shapes={n: (1, size, 99) for n, size in usual.items()})
    session = RUNTIME.open(component, CPU, Options(static=True))
    assert session.details["compiled"] == 1
    assert session.placement.provider == "CPU"
    session.run(sample_inputs(component, usual))
    assert session.details["compiled"] == 1


def test_a_lazy_session_compiles_for_its_first_call_alone(unet_model: Any) -> None:
    usual, other = ({"batch": 2, "height": side, "width": 8, "tokens": 77} for side in (16, 8))
    component = replace(unet_model.components["onnx"], shapes={n: (1, size, 99) for n, size in usual.items()})
    session = RUNTIME.open(component, CPU, Options(static=True, lazy=True))
    assert session.details["compiled"] == 0
    assert session.placement.device == "cpu"
    session.run(sample_inputs(component, other))
    assert session.details["compiled"] == 1
    assert RUNTIME.open(component, CPU, Options(lazy=True)).details["compiled"] == 1, "for any sizes: none to wait for"


def test_what_was_compiled_for_the_usual_sizes_goes_where_others_are_asked_for_first(unet_model: Any) -> None:
    usual, other = ({"batch": 2, "height": side, "width": 8, "tokens": 77} for side in (16, 8))
    component = replace(unet_model.components["onnx"], shapes={n: (1, size, 99) for n, size in usual.items()})
    compiled = []
    session = RUNTIME.open(component, CPU, Options(static=True))
    for sizes in (other, usual, other, usual):
        session.run(sample_inputs(component, sizes))
        compiled.append(session.details["compiled"])
    assert compiled == [2, 3, 3, 3]


def test_no_more_are_kept_than_half_of_the_memory_holds(unet_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrify.runtimes import ov as module

    component = replace(unet_model.components["onnx"], shapes={})
    weights = external_bytes(component.graph_path)
    inputs = [sample_inputs(component, {"batch": 1, "height": 8, "width": 8 * n, "tokens": 77}) for n in (1, 2, 3)]
    for room, expected in ((7 * weights, 3), (5 * weights, 4), (weights, 5)):  # 3 of them fit, 2, and one in any case
        monkeypatch.setattr(module, "memory", lambda room=room: room)
        session = RUNTIME.open(component, CPU, Options(static=True))
        for number in (0, 1, 2, 2, 1, 0):
            session.run(inputs[number])
        assert session.details["compiled"] == expected


def test_static_sizes_change_no_numbers_in_two_threads(unet_model: Any, same: Any) -> None:
    component = unet_model.components["onnx"]
    inputs = [sample_inputs(component, check, seed=n) for n, check in enumerate(component.details["checks"])]
    session, expected = RUNTIME.open(component, CPU, Options(static=True)), [unet_model.reference(t) for t in inputs]
    got: list[list[dict[str, np.ndarray]]] = [[], []]

    def work(number: int) -> None:
        for turn in range(6):
            got[number].append(session.run(inputs[(number + turn) % 2]))

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in (0, 1):
        assert len(got[number]) == 6
        for turn, result in enumerate(got[number]):
            same(result, expected[(number + turn) % 2])


def test_changed_weights_last_over_every_size(vit_model: Any, same: Any) -> None:
    component = vit_model.components["onnx"]
    changed = {"classifier.bias": np.full(5, 3.0, np.float32)}
    inputs = [
        {"pixel_values": np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)}
        for batch in (1, 2, 3)
    ]
    expected = [vit_model.reference(t, changed) for t in inputs]
    session = RUNTIME.open(component, CPU, Options(static=True), changed)
    changed["classifier.bias"][...] = np.nan
    for tensors, value in zip(inputs, expected, strict=True):
        same(session.run(tensors), value)
