"""Tensors that stay where an ONNX Runtime session computes, here the CPU; and work that is bound once, and replayed."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadInput, RuntimeFailure  # noqa: E402
from vitrify.core.tensors import DeviceTensor, DType  # noqa: E402
from vitrify.runtimes.base import DeviceSession, Options, Placement  # noqa: E402
from vitrify.runtimes.ort import RUNTIME  # noqa: E402
from vitrify.runtimes.ort_binding import HOST, Recorder  # noqa: E402
from vitrify.runtimes.ort_session import OrtSession, Ways  # noqa: E402


@pytest.fixture(scope="module")
def component(unet_model: Any) -> Any:
    return unet_model.components["onnx"]


@pytest.fixture
def session(component: Any) -> OrtSession:
    return RUNTIME.open(component, Device("cpu"), Options())


@pytest.fixture
def recorded(component: Any, session: OrtSession) -> OrtSession:
    """The same session with its work bound once a set of sizes, as with cuda_graphs on a GPU."""
    return OrtSession(component, session._session, session.placement, Ways(records=True))


def inputs(height: int = 8, seed: int = 0, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((batch, 4, height, 8)).astype(np.float32),
        "timestep": np.asarray(np.float32(10 + seed)),
        "encoder_hidden_states": rng.standard_normal((batch, 77, 8)).astype(np.float32),
    }


def only(outputs: dict[str, Any]) -> Any:
    (value,) = outputs.values()
    return value


def test_the_session_is_one_whose_tensors_may_stay(session: OrtSession) -> None:
    assert isinstance(session, DeviceSession)
    assert session.owner == "onnx cpu"


@pytest.mark.parametrize(
    ("device", "owner"),
    [
        ("cpu:0", "onnx cpu"),
        ("cuda", "onnx cuda:0"),
        ("cuda:1", "onnx cuda:1"),
        ("npu", "onnx npu"),
        ("gpu", "onnx gpu:0"),
    ],
)
def test_the_owner_is_the_device_by_its_number(component: Any, session: OrtSession, device: str, owner: str) -> None:
    placement = Placement("onnx", "x", device, "float32")
    assert OrtSession(component, session._session, placement).owner == owner


def test_arrays_and_device_tensors_give_the_same_numbers(session: OrtSession) -> None:
    arrays = inputs()
    plain = only(session.run(arrays))
    tensors = {name: session.to_device(array) for name, array in arrays.items()}
    assert tensors["timestep"].shape == ()
    assert (tensors["sample"].dtype, tensors["sample"].shape) == (DType.FLOAT32, (1, 4, 8, 8))
    np.testing.assert_array_equal(only(session.run(tensors)), plain)
    np.testing.assert_array_equal(only(session.run(arrays | {"sample": tensors["sample"]})), plain)
    out = only(session.run_on_device(arrays | {"sample": tensors["sample"]}))
    assert (out.owner, out.shape, out.dtype) == ("onnx cpu", plain.shape, DType.FLOAT32)
    np.testing.assert_array_equal(session.to_host(out), plain)


def test_a_result_is_an_input_of_another_session_and_outlives_its_own(component: Any, session: OrtSession) -> None:
    first = only(session.run_on_device(inputs()))
    array = session.to_host(first)
    session.close()
    gc.collect()
    other = RUNTIME.open(component, Device("cpu"), Options(threads=1))
    expected = only(other.run(inputs(seed=1) | {"sample": array}))
    np.testing.assert_array_equal(only(other.run(inputs(seed=1) | {"sample": first})), expected)
    np.testing.assert_array_equal(other.to_host(first), array)


def test_device_tensors_are_copies(session: OrtSession) -> None:
    array = inputs()["sample"]
    kept, tensor = array.copy(), session.to_device(array)
    array[...] = np.nan
    np.testing.assert_array_equal(session.to_host(tensor), kept)
    back = session.to_host(tensor)
    back[...] = 7  # raises where it may not be written
    np.testing.assert_array_equal(session.to_host(tensor), kept)
    strided = np.asfortranarray(kept)
    np.testing.assert_array_equal(session.to_host(session.to_device(strided)), kept)


def test_results_stay_as_they_are(session: OrtSession, recorded: OrtSession) -> None:
    for one in (session, recorded):
        for _ in range(2):
            first = only(one.run_on_device(inputs()))
            kept = one.to_host(first)
            only(one.run_on_device(inputs(seed=1)))
            array = only(one.run(inputs(seed=2)))
            copied = array.copy()
            one.run(inputs(seed=3))
            np.testing.assert_array_equal(one.to_host(first), kept)
            np.testing.assert_array_equal(array, copied)


def test_a_tensor_of_another_device_is_refused(session: OrtSession) -> None:
    strange = DeviceTensor(DType.FLOAT32, (1, 4, 8, 8), "onnx cuda:0", None)
    with pytest.raises(BadInput, match=r"sample lies on onnx cuda:0, expected on onnx cpu"):
        session.run(inputs() | {"sample": strange})
    with pytest.raises(BadInput, match=r"lies on onnx cuda:0, expected onnx cpu"):
        session.to_host(strange)


def test_a_closed_session_gives_no_tensors(session: OrtSession) -> None:
    session.close()
    with pytest.raises(RuntimeFailure, match=r"session of .* is closed"):
        session.run_on_device(inputs())


def test_replayed_work_gives_the_same_numbers_at_every_size(session: OrtSession, recorded: OrtSession) -> None:
    heights = (8, 16, 8, 24, 32, 40, 8, 48, 16, 8)  # more sizes than are kept
    for seed, height in enumerate(heights):
        arrays = inputs(height, seed)
        expected = only(session.run(arrays))
        np.testing.assert_array_equal(only(recorded.run(arrays)), expected)
        tensors = {name: recorded.to_device(array) for name, array in arrays.items()}
        np.testing.assert_array_equal(only(recorded.run(arrays | {"sample": tensors["sample"]})), expected)
        np.testing.assert_array_equal(recorded.to_host(only(recorded.run_on_device(tensors))), expected)
    assert len(recorded._recorder._work) == 4


def test_replayed_work_reads_and_writes_fixed_addresses(component: Any, session: OrtSession) -> None:
    recorder = Recorder(session._session, component.outputs, HOST)
    first = only(recorder.run(inputs()))
    (work,) = recorder._work.values()
    given = {name: value.data_ptr() for name, value in work.inputs.items()}
    again = only(recorder.run(inputs(seed=1)))
    assert again.data_ptr() == first.data_ptr()
    assert {name: value.data_ptr() for name, value in work.inputs.items()} == given
    np.testing.assert_array_equal(again.numpy(), only(session.run(inputs(seed=1))))
    recorder.run(inputs(16))
    assert [work.number for work in recorder._work.values()] == [1, 2], "each recording has a number of its own"


def test_replayed_work_takes_turns(session: OrtSession, recorded: OrtSession) -> None:
    expected = [only(session.run(inputs(seed=seed))) for seed in range(2)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(10):
            if not np.array_equal(only(recorded.run(inputs(seed=seed))), expected[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
