"""What is IPEX's own: the versions that it takes, its silence, the layers that it rewrites, and its precisions."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.device import Device
from vitrify.core.errors import DeviceError, MissingDependency, UsageError
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
from vitrify.runtimes.low_rank import LowRank

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
pytest.importorskip("diffusers", reason="needs vitrify[torch]")

LIBRARY = "intel_extension_for_pytorch"
THERE = importlib.util.find_spec(LIBRARY) is not None
needed = pytest.mark.skipif(not THERE, reason="needs the environment of make test-ipex")


def opened(model: Any, overrides: Any = None, **options: Any) -> Any:
    return load_runtime("ipex").open(model.components["torch"], Device("cpu"), Options(**options), overrides)


def inputs(model: Any, check: int = 0) -> dict[str, np.ndarray]:
    from vitrify.proof.parity import sample_inputs

    component = model.components["torch"]
    return sample_inputs(component, component.details["checks"][check], seed=check)


def own_layers(session: Any) -> list[str]:
    return [type(m).__name__ for m in session._module.modules() if type(m).__name__.startswith("_IPEX")]


@pytest.mark.skipif(THERE, reason="tells what happens where it is not installed")
def test_where_it_is_missing_the_environment_of_its_own_is_named() -> None:
    with pytest.raises(MissingDependency) as caught:
        load_runtime("ipex")
    assert LIBRARY in caught.value.what
    assert "environment of its own" in caught.value.fix
    assert 'pip install "vitrify[ipex]"' in caught.value.fix


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from vitrify.core.errors import MissingDependency
from vitrify.core.registry import load_runtime
try:
    load_runtime("ipex")
except MissingDependency as exc:
    print(exc.what, exc.fix)
"""


def test_another_pytorch_is_told_before_the_library_fails_over_it(python: Any, tmp_path: Path) -> None:
    """Its own check prints a line and then calls os.exit, which does not exist."""
    info = tmp_path / f"{LIBRARY}-1.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {LIBRARY}\nVersion: 1.13.0\n")
    ran = python(LOAD, tmp_path)
    assert ran.err == ""
    assert f"{LIBRARY} 1.13.0 runs with PyTorch 1.13 alone; this is {torch.__version__}" in ran.out
    assert "environment of its own" in ran.out


def test_another_transformers_is_told_too(python: Any, tmp_path: Path) -> None:
    """With transformers 5 its import ends in a NameError."""
    own = ".".join(torch.__version__.split(".")[:2])
    for name, version in ((LIBRARY, f"{own}.0"), ("transformers", "5.24.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    ran = python(LOAD, tmp_path)
    assert f"{LIBRARY} {own}.0 does not import beside transformers 5.24.0; 4 is needed" in ran.out
    assert "environment of its own" in ran.out


IMPORT = """
import logging
from vitrify.core.registry import load_runtime
before = logging.getLoggerClass(), list(logging.getLogger().handlers)
load_runtime("ipex")
print(before == (logging.getLoggerClass(), list(logging.getLogger().handlers)))
logging.getLogger("IPEX").warning("a word of its own")
"""


@needed
def test_it_is_imported_in_silence_and_leaves_logging_alone(python: Any) -> None:
    ran = python(IMPORT)
    assert (ran.code, ran.out) == (0, "True\n")
    assert ran.err == "a word of its own\n"


@needed
def test_what_others_write_meanwhile_comes_through(capfd: Any) -> None:
    from vitrify.runtimes.torch.ipex import _without_replaced

    chatter = "[W1130 05:43:59.587 OperatorEntry.cpp:218] Warning: Warning only once for all operators\n  operator: x\n"
    with _without_replaced():
        os.write(2, f"before\n{chatter}after\n".encode())
    assert capfd.readouterr().err == "before\nafter\n"


@needed
def test_the_probe_says_that_it_is_at_its_end_and_what_replaces_it() -> None:
    probe = load_runtime("ipex").probe()
    assert probe.devices[0] == "cpu"
    assert probe.details["isa"]
    note = probe.details["note"]
    assert "ended it" in note
    assert "--runtime torch" in note
    assert "--runtime openvino" in note


@needed
@pytest.mark.parametrize("prepack", [True, False])
def test_its_own_layers_run_where_weights_may_be_packed(unet_model: Any, same: Any, prepack: bool) -> None:
    session = opened(unet_model, prepack=prepack)
    assert (session.placement.runtime, session.placement.provider) == ("ipex", "ipex")
    layers = own_layers(session)
    assert {"_IPEXLinear", "_IPEXConv2d"} == set(layers) if prepack else not layers
    for check in (0, 1):
        same(session.run(inputs(unet_model, check)), unet_model.reference(inputs(unet_model, check)))


@needed
def test_bfloat16_is_computed_where_it_is_asked_for(unet_model: Any) -> None:
    ipex = pytest.importorskip(LIBRARY)
    if not ipex._C.onednn_has_bf16_support():
        pytest.skip("needs a processor with AVX-512")
    session = opened(unet_model, precision="bfloat16")
    assert session.placement.precision == "bfloat16"
    given = session.run(inputs(unet_model))["out_sample"]
    expected = unet_model.reference(inputs(unet_model))["out_sample"]
    assert given.dtype == np.float32
    snr = 10 * np.log10((expected**2).mean() / ((given - expected) ** 2).mean())
    assert 30 < snr < 70, "float32 has more than 100 dB, one rounding to 8 bits 48"


@needed
def test_a_processor_without_bfloat16_is_told(vit_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ipex = pytest.importorskip(LIBRARY)
    monkeypatch.setattr(ipex._C, "onednn_has_bf16_support", lambda: False)
    with pytest.raises(UsageError, match=r"does not compute in bfloat16.*Leave the precision out"):
        opened(vit_model, precision="bfloat16")


@needed
def test_other_precisions_and_devices_are_refused(vit_model: Any) -> None:
    with pytest.raises(UsageError, match=r"IPEX computes in float32 or bfloat16, not in float16"):
        opened(vit_model, precision="float16")
    with pytest.raises(DeviceError, match="it has cpu"):
        load_runtime("ipex").open(vit_model.components["torch"], Device("xpu", 7), Options())


@needed
def test_quantized_weights_are_refused(vit_model: Any) -> None:
    component = replace(vit_model.components["torch"], precision={"weights": "int8", "layers": 3})
    with pytest.raises(UsageError, match=r"IPEX computes with float weights.*int8.*--runtime torch"):
        load_runtime("ipex").open(component, Device("cpu"), Options())


@needed
@pytest.mark.parametrize("name", ["to_q.weight", "conv1.weight"])
def test_a_branch_stays_beside_its_layer_when_that_is_rewritten(unet_model: Any, same: Any, name: str) -> None:
    full = next(n for n in unet_model.module.state_dict() if n.endswith(name))
    weight = unet_model.module.state_dict()[full].numpy()
    rng = np.random.default_rng(0)
    down = rng.standard_normal((2, *weight.shape[1:])).astype(np.float32)
    up = rng.standard_normal((weight.shape[0], 2)).astype(np.float32) * np.float32(0.1)
    dense = weight + np.tensordot(up, down, axes=1)
    tensors = inputs(unet_model)
    expected = unet_model.reference(tensors, {full: dense})
    assert np.abs(expected["out_sample"] - unet_model.reference(tensors)["out_sample"]).max() > 0.01
    same(opened(unet_model, {full: LowRank(down, up)}).run(tensors), expected)


@needed
def test_pictures_are_onnx_runtimes(diffusion_artifact: Path, tmp_path: Path) -> None:
    """A whole pipeline: exported, compiled for PyTorch, drawn by both."""
    import vitrify

    vitrify.compile_model(diffusion_artifact, tmp_path / "torch", to="torch", verify=False)
    drawn = []
    for path, runtime in ((diffusion_artifact, "onnx"), (tmp_path / "torch", "ipex")):
        pipeline = vitrify.load(path, "cpu", runtime=runtime)
        result = pipeline.generate("a red apple", steps=4, guidance=3.0, seed=7)
        assert {p["runtime"] for p in result.placement.values()} == {runtime}
        drawn.append(np.asarray(result.images[0]).astype(np.float64))
        pipeline.close()
    error = ((drawn[0] - drawn[1]) ** 2).mean()
    assert error == 0 or 10 * np.log10(255**2 / error) > 50
