"""LoRAs laid on an artifact give what diffusers gives with them: outputs of the components, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.registry import load_runtime
from vitrify.pipelines.load import pipeline_of
from vitrify.pipelines.lora import LoraUse, lora_overrides, read_lora
from vitrify.proof.parity import sample_inputs
from vitrify.proof.quality import psnr
from vitrify.runtimes.base import Options
from vitrify.runtimes.low_rank import LowRank

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's, of its own defaults
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIZES = {"batch": 2, "height": 16, "width": 8, "tokens": 77}


def unet_inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    return sample_inputs(artifact.components["unet"], SIZES, seed=3)


def run(
    artifact: Artifact, component: str, inputs: Mapping[str, Any], changed: Any = None, runtime: str = "onnx"
) -> Any:
    opened = load_runtime(runtime).open(artifact.components[component], Device("cpu"), Options(threads=1), changed)
    return next(iter(opened.run(inputs).values()))


def unet_of(pipeline: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    tensors = [torch.from_numpy(np.array(t)) for t in inputs.values()]
    with torch.inference_mode():
        result: np.ndarray = pipeline.unet(*tensors, return_dict=False)[0].numpy()
    return result


def encoder_of(pipeline: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        result: np.ndarray = pipeline.text_encoder(torch.from_numpy(inputs["input_ids"])).last_hidden_state.numpy()
    return result


def same(given: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.ptp(expected))


def moved(before: np.ndarray, after: np.ndarray) -> bool:
    return float(np.abs(before - after).max()) > 0.01 * float(np.ptp(before))


def check(artifact: Artifact, theirs: Any, uses: list[LoraUse], encoder_inputs: Any, runtime: str = "onnx") -> None:
    """Both components give what diffusers' pipeline gives, and with no overrides what they gave before."""
    changed = lora_overrides(artifact.components, uses)
    unet, states = unet_inputs(artifact), encoder_inputs
    for component, inputs, wanted in (
        ("unet", unet, unet_of(theirs, unet)), ("text_encoder", states, encoder_of(theirs, states)),
    ):  # fmt: skip
        before = run(artifact, component, inputs, runtime=runtime)
        same(run(artifact, component, inputs, changed.get(component), runtime), wanted)
        assert moved(before, wanted) == (component in changed)
        np.testing.assert_array_equal(run(artifact, component, inputs, runtime=runtime), before)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize(("strength", "text"), [(1.0, 1.0), (0.6, 0.3), (-0.5, 0.0)])
def test_kohyas_with_convolutions_and_an_alpha(
    artifact: Artifact, theirs: Any, factors: Any, save_kohya: Any, encoder_inputs: Any,
    runtime: str, strength: float, text: float,
) -> None:  # fmt: skip
    pytest.importorskip(runtime if runtime == "openvino" else "onnxruntime", reason=f"the runtime {runtime} needs it")
    path = save_kohya(factors(0, rank=4), alpha=2.0)
    theirs.load_lora_weights(path, adapter_name="style")
    theirs.set_adapters(["style"], [{"unet": strength, "text_encoder": text}])
    check(artifact, theirs, [LoraUse(read_lora(path), strength, text)], encoder_inputs, runtime)


def test_several_add_up(artifact: Artifact, theirs: Any, factors: Any, save_kohya: Any, encoder_inputs: Any) -> None:
    paths = [save_kohya(factors(s, rank=r, convs=s > 1), alpha=r, name=f"l{s}") for s, r in ((1, 2), (2, 5))]
    for path in paths:
        theirs.load_lora_weights(path, adapter_name=path.stem)
    theirs.set_adapters(["l1", "l2"], [0.7, -0.4])
    check(artifact, theirs, [LoraUse(read_lora(p), s) for p, s in zip(paths, (0.7, -0.4), strict=True)], encoder_inputs)


def test_diffusers_own_with_pefts_settings(
    artifact: Artifact, theirs: Any, encoder_inputs: Any, tmp_path: Path
) -> None:
    """As diffusers' training scripts save them: alpha stands in the file's metadata, some layers' apart."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    rows = {
        "unet": LoraConfig(
            r=4, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1"], init_lora_weights=False,
            rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 3, "attn1.to_v": 1},
        ),
        "text_encoder": LoraConfig(
            r=3, lora_alpha=3, target_modules=["q_proj", "out_proj", "fc1"], init_lora_weights=False, use_rslora=True
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    states, settings = {}, {}
    for name, config in rows.items():
        model = getattr(theirs, name)
        inject_adapter_in_model(config, model)
        model.peft_config = {"default": config}
        states[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        settings[f"{name}_lora_adapter_metadata"] = config.to_dict()
    type(theirs).save_lora_weights(tmp_path, **states, **settings)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    check(artifact, theirs, [LoraUse(read_lora(path))], encoder_inputs)


def test_diffusers_old_attention_processors(
    artifact: Artifact, theirs: Any, factors: Any, encoder_inputs: Any, tmp_path: Path
) -> None:
    tensors = {}
    for weight, (down, up) in factors(4, rank=3, convs=False)["unet"].items():
        layer = weight.removesuffix(".weight")
        if ".attn" in layer:
            place, _, leaf = layer.replace("to_out.0", "to_out").rpartition(".")
            tensors[f"unet.{place}.processor.{leaf}_lora.down.weight"] = down
            tensors[f"unet.{place}.processor.{leaf}_lora.up.weight"] = up
    save_file(tensors, tmp_path / "old.safetensors")
    theirs.load_lora_weights(tmp_path / "old.safetensors")
    check(artifact, theirs, [LoraUse(read_lora(tmp_path / "old.safetensors"))], encoder_inputs)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"], ids=str)
def test_half_precision_files(
    artifact: Artifact, theirs: Any, factors: Any, save_kohya: Any, encoder_inputs: Any, tmp_path: Path, dtype: Any
) -> None:
    import safetensors.torch

    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    tensors = safetensors.torch.load_file(save_kohya(factors(5, rank=4), alpha=4.0))
    safetensors.torch.save_file({n: t.to(wanted) for n, t in tensors.items()}, tmp_path / "half.safetensors")
    theirs.load_lora_weights(tmp_path / "half.safetensors", adapter_name="style")
    check(artifact, theirs, [LoraUse(read_lora(tmp_path / "half.safetensors"))], encoder_inputs)


def draw(artifact: Artifact, uses: list[LoraUse], runtime: str = "onnx") -> tuple[np.ndarray, dict[str, int]]:
    """A picture, and how many of each component's layers got a branch."""
    changed = lora_overrides(artifact.components, uses)
    branches = {n: sum(isinstance(v, LowRank) for v in c.values()) for n, c in changed.items()}
    backend, options = load_runtime(runtime), Options(threads=1)
    sessions = {
        name: backend.open(artifact.components[name], Device("cpu"), options, changed.get(name))
        for name in ("text_encoder", "unet", "vae_decoder")
    }
    pipeline: Any = pipeline_of(artifact, sessions)
    result = pipeline.generate("a red apple", steps=6, guidance=4.0, seed=5, width=64, height=64)
    return np.asarray(result.images[0]), branches


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_picture_is_the_one_that_diffusers_draws(
    artifact: Artifact, theirs: Any, factors: Any, save_kohya: Any, runtime: str, cell: Any
) -> None:
    pytest.importorskip(runtime if runtime == "openvino" else "onnxruntime", reason=f"the runtime {runtime} needs it")
    cell("sd", "LoRA", runtime)
    path = save_kohya(factors(6, rank=4, size=0.1), alpha=4.0)
    plain, _ = draw(artifact, [], runtime)
    given, branches = draw(artifact, [LoraUse(read_lora(path), 0.8)], runtime)
    assert not any(branches.values())
    theirs.load_lora_weights(path, adapter_name="style")
    theirs.set_adapters(["style"], [0.8])
    done = theirs("a red apple", num_inference_steps=6, guidance_scale=4.0, generator=torch.Generator().manual_seed(5))
    wanted = np.asarray(done.images[0])
    assert wanted.std() > 10
    assert psnr(plain, wanted) < 30, "a LoRA that changes nothing would prove nothing"
    assert psnr(given, wanted) >= 45
    np.testing.assert_array_equal(draw(artifact, [], runtime)[0], plain)


def test_a_picture_of_a_quantized_model_is_as_near_as_without_a_lora(
    artifact: Artifact, factors: Any, save_kohya: Any, tmp_path: Path
) -> None:
    from vitrify.export.compile import compile_model

    use = [LoraUse(read_lora(save_kohya(factors(7, rank=4, size=0.1), alpha=4.0)), 0.8)]
    compiled = compile_model(artifact.root, tmp_path / "int8", to="onnx", quant="int8-weights", verify=False)
    given, branches = draw(compiled, use)
    assert branches == {"unet": 80, "text_encoder": 12}
    wanted = draw(artifact, use)[0]
    assert psnr(draw(artifact, [])[0], wanted) < 30
    assert psnr(given, wanted) >= 35
