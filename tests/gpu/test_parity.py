"""A component's numbers on each runtime and device, beside the library's own module in float32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vitrify.core.tensors import DeviceTensor
from vitrify.runtimes.base import DeviceSession

from .conftest import apart, inputs_of, session_at
from .places import EVERYWHERE, GPUS, ONNX, ONNX_CUDA, ONNX_TENSORRT, RTX, TENSORRT, TORCH, TORCH_CUDA, Place, where

FLOAT32 = 1e-4  # of the output's range: the contract that every adapter passes on the CPU; TF32 would be 1e-3
MODELS = ("vit_model", "unet_model")
WITH_GRAPHS = [p.having(cuda_graphs=True) for p in (ONNX_CUDA, RTX, TENSORRT)]
TORCHS = [
    option
    for place in (TORCH, TORCH_CUDA)
    for option in (place.having(channels_last=True), place.having(attention="math"))
]
COMPILED = [p.having(compile="regional") for p in (TORCH, TORCH_CUDA)] + [TORCH_CUDA.having(compile="whole")]
HALVES = [
    *(p.having(precision="bfloat16") for p in (TORCH, TORCH_CUDA)),
    TORCH_CUDA.having(precision="float16"),  # few processors have it
]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("place", where([*EVERYWHERE, *TORCHS]))
def test_a_component_equals_torchs(place: Place, model: Any, component_at: Any, figure: Callable[..., None]) -> None:
    """At two sizes in one session, and the first again."""
    component = component_at(model, place)
    with session_at(component, place) as session:
        found = [apart(session.run(t), model.reference(t)) for t in (inputs_of(component, n) for n in (0, 1, 0))]
        placement = session.placement
    figure("ran", str(placement))
    figure("apart", max(found))
    assert max(found) < FLOAT32
    assert placement.runtime == place.runtime
    assert placement.device in (place.device, place.device.partition(":")[0])


@pytest.mark.slow  # a compiler works for half a minute
@pytest.mark.parametrize("place", where(COMPILED))
def test_a_compiled_component_equals_torchs(
    place: Place, unet_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    test_a_component_equals_torchs(place, unet_model, component_at, figure)


@pytest.mark.parametrize("place", where(HALVES))
def test_a_component_in_half_precision_is_near(
    place: Place, unet_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    """As near to float32 as the library's own module in that float, on the CPU; kernels round in another order."""
    import torch

    component = component_at(unet_model, place)
    tensors = inputs_of(component, 0)
    expected = unet_model.reference(tensors)["out_sample"]
    with session_at(component, place) as session:
        given = session.run(tensors)["out_sample"]
        assert session.placement.precision == place.options["precision"]
    assert given.dtype == np.float32  # the boundary's, whatever was computed in
    dtype = getattr(torch, place.options["precision"])
    own = copy.deepcopy(unet_model.module).to(dtype)
    sample, timestep, states = (torch.from_numpy(np.array(tensors[name])) for name in component.inputs)
    with torch.no_grad():
        theirs = own(sample.to(dtype), timestep, states.to(dtype)).sample.float().numpy()
    figure("snr_db", snr(given, expected))
    figure("own_snr_db", snr(theirs, expected))
    assert snr(theirs, expected) - 3 < snr(given, expected) < 100


def snr(given: np.ndarray, expected: np.ndarray) -> float:
    """Signal to noise, dB."""
    return float(10 * np.log10((expected**2).mean() / ((given - expected) ** 2).mean()))


@pytest.mark.parametrize("place", where(WITH_GRAPHS))
def test_a_recorded_call_gives_the_same_numbers(
    place: Place, unet_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    """Recorded, replayed with other numbers, at another size, and at the first again."""
    component = component_at(unet_model, place)
    plain = Place(place.runtime, place.device)
    calls = [inputs_of(component, n) for n in (0, 0, 0, 1, 1, 0)]
    for number, tensors in enumerate(calls):
        tensors["sample"] = tensors["sample"] + np.float32(0.1 * number)
    with session_at(component, plain) as session:
        expected = [session.run(tensors) for tensors in calls]
    with session_at(component, place) as session:
        given = [session.run(tensors) for tensors in calls]
    found = max(apart(a, b) for a, b in zip(given, expected, strict=True))
    figure("apart", found)
    assert found < 1e-5  # the same kernels in the same order; a replay that kept old inputs would be far off


@pytest.mark.parametrize("place", where(EVERYWHERE))
def test_tensors_may_stay_on_the_device(
    place: Place, unet_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    component = component_at(unet_model, place)
    tensors = inputs_of(component, 0)
    with session_at(component, place) as session:
        assert isinstance(session, DeviceSession)
        expected = session.run(tensors)
        staying = {name: session.to_device(tensors[name]) for name in ("encoder_hidden_states",)}
        mixed = session.run(tensors | staying)
        kept = session.run_on_device(tensors | staying)
        again = session.run_on_device(tensors | staying)
        assert all(isinstance(value, DeviceTensor) for value in kept.values())
        given = {name: session.to_host(value) for name, value in kept.items()}
        later = {name: session.to_host(value) for name, value in again.items()}
        chained = session.run(tensors | staying | {"sample": kept["out_sample"]})
        by_host = session.run(tensors | {"sample": expected["out_sample"]})
    found = max(apart(mixed, expected), apart(given, expected), apart(later, expected), apart(chained, by_host))
    figure("apart", found)
    assert found < 1e-6


@pytest.mark.parametrize("place", where(p for p in EVERYWHERE if not p.is_plan))
def test_changed_weights_change_one_session(
    place: Place, vit_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    changes_one_session(vit_model, component_at(vit_model, place), place, figure)


@pytest.mark.parametrize("keeps", ["refit", "strip", "apart"])
@pytest.mark.parametrize("place", where([RTX, TENSORRT]))
def test_changed_weights_change_one_plan(
    place: Place, keeps: str, vit_model: Any, component_at: Any, figure: Callable[..., None]
) -> None:
    """Of each of the three ways in which a plan takes weights from outside."""
    from vitrify.export.plan_options import PlanOptions

    component = component_at(vit_model, place, options=PlanOptions(**{keeps: True}))
    changes_one_session(vit_model, component, place, figure)


def changes_one_session(model: Any, component: Any, place: Place, figure: Callable[..., None]) -> None:
    """What a LoRA needs: a session has its changed weights, and those before, beside and after it have none of it."""
    tensors, rng = inputs_of(component, 0), np.random.default_rng(1)
    state = model.module.state_dict()
    name = next(n for n in state if n.endswith(("q_proj.weight", "query.weight")))
    changed = {name: rng.standard_normal(state[name].shape).astype(np.float32)}
    with session_at(component, place) as before, session_at(component, place, changed) as session:
        given, plain = session.run(tensors), before.run(tensors)
    with session_at(component, place) as after:
        again = after.run(tensors)
    expected = model.reference(tensors, changed)
    assert apart(expected, model.reference(tensors)) > 0.01
    figure("apart", apart(given, expected))
    assert apart(given, expected) < FLOAT32
    assert apart(plain, model.reference(tensors)) < FLOAT32
    assert all(np.array_equal(plain[name], again[name]) for name in plain)


@pytest.mark.skipif(bool(GPUS), reason="where a GPU is, the plans are run")
@pytest.mark.parametrize("how", [{}, {"precision": "float16"}, {"apart": True}, {"weight_streaming": True}], ids=str)
def test_the_plans_are_built_without_a_gpu_and_then_ask_for_one(
    how: dict[str, Any], vit_model: Any, component_at: Any
) -> None:
    """All of a plan's checks that can be taken where none runs."""
    from vitrify.core.errors import DeviceError

    pytest.importorskip("tensorrt_rtx", reason='needs pip install "vitrify[tensorrt-rtx]"')
    from vitrify.export.plan_options import PlanOptions

    component = component_at(vit_model, RTX, options=PlanOptions(**how))
    assert component.format == RTX.format
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"), session_at(component, RTX):
        pass


@pytest.mark.parametrize("place", where([ONNX, TORCH, ONNX_CUDA, ONNX_TENSORRT, TORCH_CUDA]))
def test_a_device_that_is_not_there_is_refused(place: Place, unet_model: Any, component_at: Any) -> None:
    """Nothing falls back: neither to another GPU nor to the CPU."""
    from vitrify.core.errors import DeviceError

    there_is_none = Place(place.runtime, "cuda:63", place.options)
    with pytest.raises(DeviceError, match="cuda:63"), session_at(component_at(unet_model, place), there_is_none):
        pass
