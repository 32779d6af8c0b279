"""What every runtime's adapter must do, held against each of them."""

from __future__ import annotations

import gc
import importlib.metadata
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure
from vitrify.core.registry import runtime_names


def test_probe_says_version_and_devices(row: Any, case: Any) -> None:
    probe = case.runtime.probe()
    assert row.runtime in runtime_names()
    assert probe.runtime == case.runtime.name == row.runtime
    # PyTorch names its build behind a plus, which the metadata of PyPI's wheels does not
    # PyPI has several wheels of one module, such as onnxruntime-gpu
    wheels = importlib.metadata.packages_distributions()[row.library]
    assert probe.version.partition("+")[0] in [importlib.metadata.version(w).partition("+")[0] for w in wheels]
    assert "cpu" in probe.devices
    assert (probe.problem, probe.fix) == ("", "")


def test_a_session_has_the_components_inputs_and_outputs(unet_case: Any, unet_session: Any) -> None:
    assert dict(unet_session.inputs) == dict(unet_case.component.inputs)
    assert dict(unet_session.outputs) == dict(unet_case.component.outputs)


@pytest.mark.parametrize("check", [0, 1])
def test_a_classifier_equals_the_librarys(case: Any, same: Any, check: int) -> None:
    same(case.open().run(case.inputs(check)), case.expected(check))


def test_a_unet_equals_the_librarys_at_two_sizes_in_one_session(unet_case: Any, unet_session: Any, same: Any) -> None:
    for check in (0, 1, 0):
        same(unet_session.run(unet_case.inputs(check)), unet_case.expected(check))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"sample": t["sample"].astype(np.float16)}, r"sample is float16, expected float32"),
        (lambda t: t | {"sample": t["sample"].astype(">f4")}, r"sample is float32 in foreign byte order"),
        (lambda t: t | {"sample": t["sample"].tolist()}, r"sample is a list, expected a numpy array"),
        (lambda t: t | {"sample": t["sample"][:, :3]}, r"sample has shape \[1, 3, 16, 8\], expected \['batch', 4,"),
        (lambda t: t | {"timestep": t["timestep"][None]}, r"timestep has shape \[1\], expected \[\]"),
        (
            lambda t: t | {"encoder_hidden_states": np.repeat(t["encoder_hidden_states"], 2, 0)},
            r"encoder_hidden_states has shape \[2, 77, 8\].*\{'batch': 1",
        ),
        (lambda t: {n: v for n, v in t.items() if n != "timestep"}, r"missing: timestep.*Give exactly: sample, timest"),
        (lambda t: t | {"mask": t["sample"]}, r"unknown: mask.*Give exactly: sample, timestep"),
    ],
    ids=["dtype", "byte order", "no array", "channels", "rank", "batches that differ", "missing", "unknown"],
)
def test_wrong_tensors_are_named(unet_case: Any, unet_session: Any, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        unet_session.run(change(unet_case.inputs()))


def test_outputs_belong_to_the_caller(case: Any) -> None:
    session = case.open()
    first = session.run(case.inputs())["logits"]
    kept = first.copy()
    first[...] = 7  # raises where it may not be written
    second = session.run(case.inputs())["logits"]
    np.testing.assert_array_equal(second, kept)
    session.run(case.inputs(1))
    np.testing.assert_array_equal(second, kept)
    session.close()
    del session
    gc.collect()
    np.testing.assert_array_equal(second, kept)


def test_inputs_stay_as_they_are(unet_case: Any, unet_session: Any) -> None:
    tensors = unet_case.inputs()
    kept = {name: value.copy() for name, value in tensors.items()}
    for value in tensors.values():
        value.flags.writeable = False
    unet_session.run(tensors)
    for name, value in kept.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_inputs_may_lie_in_any_order_in_memory(unet_case: Any, unet_session: Any, same: Any) -> None:
    tensors = unet_case.inputs()
    strided = {
        "sample": np.asfortranarray(tensors["sample"]),
        "timestep": tensors["timestep"],
        "encoder_hidden_states": np.repeat(tensors["encoder_hidden_states"], 2, axis=2)[:, :, ::2],
    }
    assert not strided["sample"].flags.c_contiguous
    assert not strided["encoder_hidden_states"].flags.c_contiguous
    same(unet_session.run(strided), unet_case.expected())


def test_a_closed_session_says_so(case: Any) -> None:
    session = case.open()
    session.close()
    session.close()
    with pytest.raises(RuntimeFailure, match=r"session of model is closed.*Open it again"):
        session.run(case.inputs())


@pytest.mark.parametrize("device", ["cuda:63", "npu", "coreml", "cpu:1"])
def test_a_device_that_is_not_there_is_an_error(case: Any, device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        case.open(device=device)
    assert device in caught.value.what
    assert "it has cpu" in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_placement_says_what_runs(case: Any, device: str) -> None:
    placement = case.open(device=device).placement
    assert placement.runtime == case.row.runtime
    assert placement.device in ("cpu", device)
    assert placement.provider
    over = case.component.precision["weights"] if case.row.quant else ""
    assert placement.precision.split(" over ") == ["float32", *([over] if over else [])]


def changed_weights(case: Any) -> dict[str, np.ndarray]:
    """A matrix and a vector of the state dict, changed; rounded so that every stored type holds them exactly."""
    import torch

    state, rng = case.model.module.state_dict(), np.random.default_rng(1)
    # what is stored in few bits takes no other weight; the classifier's stays in float
    matrix = ("classifier.weight",) if case.row.quant else ("q_proj.weight", "query.weight")
    names = [next(n for n in state if n.endswith(matrix)), "classifier.bias"]
    changed = {n: state[n].numpy() + rng.standard_normal(state[n].shape).astype(np.float32) for n in names}
    return {n: torch.from_numpy(v).bfloat16().half().bfloat16().float().numpy() for n, v in changed.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_changed_weights_change_one_session_as_in_torch(make_case: Any, same: Any, dtype: str) -> None:
    case = make_case(dtype=dtype)
    tensors, changed = case.inputs(), changed_weights(case)
    plain, given = case.model.reference(tensors), case.model.reference(tensors, changed)
    assert np.abs(plain["logits"] - given["logits"]).max() > 0.1
    before, session = case.open(), case.open(overrides=changed)
    for value in changed.values():
        value[...] = np.nan  # the caller's again once the session is open
    del changed
    gc.collect()
    same(session.run(tensors), given)
    same(before.run(tensors), plain)
    same(case.open().run(tensors), plain)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("classifier.nothing", (5,)), ("classifier.bias", (6,)), ("classifier.weight", (16, 5))],
    ids=["unknown", "shape", "transposed"],
)
def test_a_changed_weight_without_an_owner_is_named(case: Any, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=name):
        case.open(overrides={name: np.zeros(shape, np.float32)})


def weights_of(component: Any) -> Path:
    return next(p for p in component.graph_path.parent.iterdir() if p.suffix in (".safetensors", ".bin"))


@pytest.mark.parametrize(
    ("part", "damage"),
    # noise in the weights' data is found by its hash, not by a runtime
    [(part, damage) for part in ("graph", "weights") for damage in ("missing", "half", "empty")] + [("graph", "noise")],
)
def test_a_damaged_component_is_refused(case: Any, tmp_path: Path, part: str, damage: str) -> None:
    component = case.copied(tmp_path / "copy")
    path = component.graph_path if part == "graph" else weights_of(component)
    data = path.read_bytes()
    if damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(data)))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
    with pytest.raises(BadArtifact) as caught:
        case.open(component)
    # native code is never handed to a library before its hash was seen to be right
    assert caught.value.__cause__ is not None or "sha256" in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 2}, {"prepack": False}, {"arena": False}], ids=str)
def test_options_do_not_change_numbers(unet_case: Any, same: Any, options: dict[str, Any]) -> None:
    session = unet_case.open(**options)
    for _ in range(2):
        same(session.run(unet_case.inputs()), unet_case.expected())


def test_sessions_run_side_by_side(case: Any, same: Any) -> None:
    tensors = [case.inputs(0), case.inputs(1)]
    expected = [case.expected(0), case.expected(1)]
    sessions = [case.open(threads=1), case.open(threads=2)]
    start, got = threading.Barrier(2), [[], []]  # type: list[list[dict[str, np.ndarray]]]

    def work(number: int) -> None:
        start.wait()
        for _ in range(20):
            got[number].append(sessions[number].run(tensors[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in (0, 1):
        assert len(got[number]) == 20
        for result in got[number]:
            same(result, expected[number])


def test_one_session_may_run_in_two_threads(case: Any, same: Any) -> None:
    session, tensors = case.open(), [case.inputs(0), case.inputs(1)]
    got: list[list[dict[str, np.ndarray]]] = [[], []]

    def work(number: int) -> None:
        for _ in range(20):
            got[number].append(session.run(tensors[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in (0, 1):
        assert len(got[number]) == 20
        for result in got[number]:
            same(result, case.expected(number))
