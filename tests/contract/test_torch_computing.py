"""How PyTorch computes a component: precision, memory order, attention, device, and tensors that stay on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
pytest.importorskip("diffusers", reason="needs vitrify[torch]")

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadInput, DeviceError, UsageError  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.runtimes.base import DeviceSession, Options  # noqa: E402
from vitrify.runtimes.torch import RUNTIME, computing, devices  # noqa: E402


def opened(model: Any, **options: Any) -> Any:
    return RUNTIME.open(model.components["torch"], Device("cpu"), Options(**options))


def inputs_of(model: Any, check: int = 0) -> dict[str, np.ndarray]:
    component = model.components["torch"]
    return sample_inputs(component, component.details["checks"][check], seed=check)


@pytest.fixture(scope="module")
def expected(unet_model: Any) -> np.ndarray:
    return unet_model.reference(inputs_of(unet_model))["out_sample"]


def test_bfloat16_computes_in_it_between_tensors_in_float32(unet_model: Any, expected: np.ndarray) -> None:
    session = opened(unet_model, precision="bfloat16")
    seen: list[list[torch.dtype]] = []
    session._module.inner.register_forward_pre_hook(lambda _, given: seen.append([t.dtype for t in given]))
    out = session.run(inputs_of(unet_model))["out_sample"]
    assert session.placement.precision == "bfloat16"
    assert {p.dtype for p in session._module.parameters()} == {torch.bfloat16}
    # the timestep's features are made in float32: bfloat16 has no 981
    assert seen == [[torch.bfloat16, torch.float32, torch.bfloat16]]
    assert out.dtype == np.float32
    off = np.abs(out - expected).max() / np.ptp(expected)
    assert 1e-5 < off < 0.05, "bfloat16 has 8 bits, and float32 would be closer"


def test_float16_is_refused_where_the_processor_has_none(unet_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_info", lambda: [("flags", "avx2 avx512_bf16")])
    with pytest.raises(DeviceError, match=r"no instructions for float16.*precision=bfloat16"):
        opened(unet_model, precision="float16")
    assert devices.details()["cpu"] == {
        "bfloat16": "avx512_bf16", "float16": "converted to float32 and back: slow"
    }  # fmt: skip


def test_a_vae_stays_in_float32_where_float16_was_asked_for() -> None:
    vae = Component("vae_decoder", "torch", "config.json", {}, {}, details={"kind": "vae_decoder"})
    assert computing.precision_of(vae, "float16", torch.device("cpu")) == "float32"
    assert computing.precision_of(vae, "bfloat16", torch.device("cpu")) == "bfloat16"


def test_a_precision_that_is_none_or_over_quantized_weights_is_refused(unet_model: Any) -> None:
    with pytest.raises(UsageError, match=r"float32, bfloat16, float16, not in float8"):
        opened(unet_model, precision="float8")
    component = replace(unet_model.components["torch"], precision={"weights": "nf4", "layers": 3})
    with pytest.raises(UsageError, match="weights in nf4, over which PyTorch computes in float32"):
        RUNTIME.open(component, Device("cpu"), Options(precision="bfloat16"))


def test_float16_keeps_the_parts_that_their_library_keeps() -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    module = torch.nn.ModuleDict({"module": T5EncoderModel(config)})
    computing.in_precision(module, "float16")
    kinds = {("wo." in name, parameter.dtype) for name, parameter in module.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.float16)}


def test_channels_last_changes_memory_and_not_numbers(unet_model: Any, expected: np.ndarray, same: Any) -> None:
    session = opened(unet_model, channels_last=True)
    convs = [m for m in session._module.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert convs
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
    out = session.run(inputs_of(unet_model))
    assert out["out_sample"].flags.c_contiguous
    same(out, {"out_sample": expected})


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_attention_runs_on_the_kernel_that_was_asked_for(
    unet_model: Any, expected: np.ndarray, same: Any, kernel: str
) -> None:
    session = opened(unet_model, attention=kernel)
    during: list[tuple[bool, bool]] = []

    def look(*_: Any) -> None:
        during.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))

    session._module.register_forward_hook(look)
    same(session.run(inputs_of(unet_model)), {"out_sample": expected})
    assert during == [(kernel == "math", kernel == "flash")]
    assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])
def test_attention_that_the_device_lacks_is_refused_with_the_reason(unet_model: Any, kernel: str) -> None:
    with pytest.raises(DeviceError, match=rf"cpu has no {kernel} attention for float32: .*backend.*math, flash"):
        opened(unet_model, attention=kernel)


def test_kernels_are_the_librarys_and_others_are_named(unet_model: Any) -> None:
    from torch.nn.attention import SDPBackend

    assert all(hasattr(SDPBackend, name) for name in computing.KERNELS.values())
    with pytest.raises(UsageError, match=r"no attention 'xformers'.*auto, or one of math, flash, efficient, cudnn"):
        opened(unet_model, attention="xformers")
    opened(unet_model, attention="auto").close()


def test_tensors_stay_on_the_device(unet_model: Any, expected: np.ndarray, same: Any) -> None:
    session, other = opened(unet_model), opened(unet_model)
    assert isinstance(session, DeviceSession)
    tensors = inputs_of(unet_model)
    kept = {name: session.to_device(tensors[name]) for name in ("sample", "encoder_hidden_states")}
    assert {t.owner for t in kept.values()} == {"torch cpu"}
    given = tensors | kept
    for _ in range(2):
        same(session.run(given), {"out_sample": expected})
    made = other.run_on_device(given)["out_sample"]  # of another session on the same device
    assert made.shape == expected.shape
    same({"out_sample": session.to_host(made)}, {"out_sample": expected})
    # what one step gives is the next one's sample
    again = session.to_host(session.run_on_device(given | {"sample": made})["out_sample"])
    same({"o": again}, {"o": unet_model.reference(tensors | {"sample": expected})["out_sample"]})
    with pytest.raises(BadInput, match="sample lies on torch cuda:0, expected on torch cpu"):
        session.run(given | {"sample": replace(made, owner="torch cuda:0")})


def test_devices_are_named_as_users_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert list(devices.names()) == ["cpu", "cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    has = tuple(devices.names())
    assert has == ("cpu", "rocm:0", "rocm:1")
    listed, place = devices.find(Device("rocm", 1), has)
    assert (str(listed), str(place)) == ("rocm:1", "cuda:1")
    with pytest.raises(DeviceError, match=r"cannot run on cuda here; it has cpu, rocm:0, rocm:1"):
        devices.find(Device("cuda"), has)
