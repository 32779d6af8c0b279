"""`vitrify.compile_pipeline`: one call from a pipeline in memory to the same one, compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrify
from vitrify.core.cache import Cache
from vitrify.core.errors import BadInput, NotFinite, ProofFailed, UsageError
from vitrify.core.progress import Event
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple"
PLAIN = {"to": "onnx", "quant": "fp32", "verify": False}
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A cache of the test's own, which has this session's graphs."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for kind in ("graphs", "bindings"):
        if (cache / kind).is_dir():
            (folder / kind).symlink_to(cache / kind)
    monkeypatch.setenv("VITRIFY_CACHE", str(folder))
    return folder


def told(events: list[Event]) -> str:
    return "\n".join(e.note for e in events if e.note)


def test_the_same_pipeline_compiled_and_again_from_the_cache(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path, diffusion_source: Path
) -> None:
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    wanted = drawn(fresh(), **arguments)[0]
    first, events = fresh(), []
    assert vitrify.compile_pipeline(first, **PLAIN, report=events.append) is first
    artifact = first.vitrify.artifact
    assert artifact.root.is_relative_to(own_cache)
    assert artifact.name == "emoji-diffusion"
    assert artifact.model["source"] == str(diffusion_source), "made from the folder, not from a copy of it"
    assert {e.stage for e in events} >= {"read unet", "export unet", "done"}
    assert "save unet" not in {e.stage for e in events}
    assert psnr(drawn(first, **arguments)[0], wanted) >= 45

    events.clear()
    second = vitrify.compile_pipeline(fresh(), **PLAIN, report=events.append)
    assert second.vitrify.artifact.root == artifact.root
    assert "in the cache" in told(events)
    assert "export unet" not in {e.stage for e in events}
    # another class over the same weights is the same model; other settings are not
    other = vitrify.compile_pipeline(fresh("StableDiffusionImg2ImgPipeline"), to="openvino", quant="fp32", verify=False)
    assert other.vitrify.artifact.root != artifact.root
    assert other.vitrify.placement["unet"]["runtime"] == "openvino"


def test_weights_that_were_changed_in_memory_are_what_is_compiled(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path
) -> None:
    pipe, twin, events = fresh(), fresh(), []
    for one in (pipe, twin):
        with torch.no_grad():
            one.unet.conv_out.weight.mul_(0.9)
    untouched = fresh()
    vitrify.compile_pipeline(pipe, **PLAIN, report=events.append)
    assert {e.stage for e in events} >= {"save unet", "save tokenizer"}
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    picture = drawn(pipe, **arguments)[0]
    assert psnr(picture, drawn(twin, **arguments)[0]) >= 45
    assert psnr(picture, drawn(untouched, **arguments)[0]) < 40
    assert not list((own_cache / "saved").iterdir()), "the copy is gone; its weights live on in the artifact"
    vitrify.compile_pipeline(untouched, **PLAIN)
    assert untouched.vitrify.artifact.root != pipe.vitrify.artifact.root


def test_a_pipeline_that_never_lay_on_disk(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path
) -> None:
    """With a class that the exporter does not know, and half-precision weights."""

    class Mine(diffusers.StableDiffusionPipeline):
        pass

    base = fresh(dtype=torch.float16)
    wanted = fresh()
    pipe = Mine(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    vitrify.compile_pipeline(pipe, **PLAIN)
    assert type(pipe) is Mine
    assert pipe.vitrify.artifact.model["architecture"] == "StableDiffusionPipeline"
    pipe.to(torch.float32)
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    assert psnr(drawn(pipe, **arguments)[0], drawn(wanted, **arguments)[0]) >= 45


def test_quantized_for_openvino_by_default(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    pytest.importorskip("nncf", reason="needs vitrify[quant]")
    pipe = fresh()
    vitrify.compile_pipeline(pipe, quant="int8-static:samples=4", output=tmp_path / "small", verify=False)
    component = pipe.vitrify.artifact.components["unet"]
    assert (component.format, component.precision["weights"]) == ("openvino", "int8")
    assert pipe.vitrify.placement["unet"]["runtime"] == "openvino"
    arguments = {"prompt": PROMPT, "num_inference_steps": 8}
    assert psnr(drawn(pipe, **arguments)[0], drawn(fresh(), **arguments)[0]) > 20


def test_a_folder_of_its_own(fresh: Callable[..., Any], own_cache: Path, tmp_path: Path) -> None:
    target, events = tmp_path / "out", []
    pipe = vitrify.compile_pipeline(fresh(), **PLAIN, output=target)
    assert pipe.vitrify.artifact.root == target
    assert [e for e in Cache().entries() if e.kind == "pipelines"] == []
    vitrify.compile_pipeline(fresh(), **PLAIN, output=target, report=events.append)
    assert "was made from this pipeline" in told(events)
    with pytest.raises(BadInput, match="exists"):
        vitrify.compile_pipeline(fresh(), to="openvino", quant="fp32", verify=False, output=target)
    again = vitrify.compile_pipeline(fresh(), to="openvino", quant="fp32", verify=False, output=target, replace=True)
    assert again.vitrify.artifact.components["unet"].format == "openvino"


def test_what_fails_leaves_the_pipeline_as_it_was(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path, tmp_path: Path
) -> None:
    pipe, target = fresh(), tmp_path / "out"
    unet = pipe.unet
    with torch.no_grad():
        unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises((ProofFailed, NotFinite), match="NaN"):
        vitrify.compile_pipeline(pipe, to="onnx", quant="fp32", output=target, verify=True)
    assert pipe.unet is unet
    assert not target.exists()
    assert not hasattr(pipe, "vitrify")


def test_what_makes_no_sense_is_refused(fresh: Callable[..., Any], own_cache: Path) -> None:
    pipe = fresh()
    with pytest.raises(BadInput, match="is no pipeline"):
        vitrify.compile_pipeline(pipe.unet)
    with pytest.raises(UsageError):
        vitrify.compile_pipeline(pipe, quant="int7")
    with pytest.raises(UsageError):
        vitrify.compile_pipeline(pipe, to="paper")
    vitrify.compile_pipeline(pipe, **PLAIN)
    with pytest.raises(UsageError, match="compiled already"):
        vitrify.compile_pipeline(pipe, **PLAIN)


def test_an_artifact_that_the_cache_does_not_hold(
    fresh: Callable[..., Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "1000")
    with pytest.raises(BadInput, match="larger than the cache") as caught:
        vitrify.compile_pipeline(fresh(), to="openvino", quant="fp32", verify=False)
    assert "output=" in caught.value.fix


def test_a_lora_is_refused_beside_the_weights_and_compiled_when_it_is_fused(
    fresh: Callable[..., Any], drawn: Callable[..., Any], own_cache: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    pipe, twin = fresh(), fresh()
    for one in (pipe, twin):
        torch.manual_seed(0)
        one.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with pytest.raises(UsageError, match="A LoRA is loaded") as caught:
        vitrify.compile_pipeline(pipe, **PLAIN)
    assert "fuse_lora" in caught.value.fix
    for one in (pipe, twin):
        one.unet.fuse_lora()
        one.unet.unload_lora()
    vitrify.compile_pipeline(pipe, **PLAIN)
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    picture = drawn(pipe, **arguments)[0]
    assert psnr(picture, drawn(twin, **arguments)[0]) >= 45
    assert psnr(picture, drawn(fresh(), **arguments)[0]) < 40


def test_a_model_of_the_hub_is_read_where_it_was_fetched(fresh: Callable[..., Any], own_cache: Path) -> None:
    pipe, events = fresh(), []
    pipe.register_to_config(_name_or_path="someone/emoji")
    vitrify.compile_pipeline(pipe, **PLAIN, report=events.append)
    assert pipe.vitrify.artifact.model["source"] == "someone/emoji"
    assert pipe.vitrify.artifact.name == "emoji"
    assert "save unet" not in {e.stage for e in events}
