"""A UNet's graph cut in two: the shallow one gives what the whole one gave, from its deep features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

import vitrify  # noqa: E402
from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadInput, UsageError  # noqa: E402
from vitrify.core.registry import load_runtime  # noqa: E402
from vitrify.export.job import export_model  # noqa: E402
from vitrify.export.step_cache import cut_in_place  # noqa: E402
from vitrify.pipelines.step_cache import DEEP  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.proof.quality import psnr  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402

PROMPT = "a red apple"
STEPS = 12


@pytest.fixture(scope="module")
def cached(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cached") / "emoji"
    export_model(diffusion_source, target, step_cache=1, verify=True)
    return target


def copied(artifact: Path, target: Path) -> Component:
    """Its UNet in a folder of its own, to be cut."""
    shutil.copytree(artifact, target)
    return Artifact.load(target).components["unet"]


def both(parts: dict[str, Component], runtime: str, sizes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the whole graph gives, and what the shallow one makes of the same inputs and its deep features."""
    opened = {n: load_runtime(runtime).open(c, Device("cpu"), Options(threads=1)) for n, c in parts.items()}
    tensors = sample_inputs(parts["unet"], sizes, seed=1)
    out = opened["unet"].run(tensors)
    shallow = opened["unet_shallow"]
    got = shallow.run({n: out[n] if n == DEEP else tensors[n] for n in shallow.inputs})
    return out["out_sample"], got["out_sample"]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_shallow_graph_gives_what_the_whole_one_did(
    diffusion_artifact: Path, tmp_path: Path, runtime: str, depth: int
) -> None:
    pytest.importorskip(load_runtime(runtime).name.replace("onnx", "onnxruntime"))
    parts = cut_in_place(copied(diffusion_artifact, tmp_path / "a"), depth)
    nodes = {n: len(onnx.load(c.graph_path, load_external_data=False).graph.node) for n, c in parts.items()}
    assert nodes["unet_shallow"] < 0.25 * depth * nodes["unet"]
    assert parts["unet_shallow"].weights == parts["unet"].weights
    for sizes in (
        {"batch": 1, "height": 16, "width": 8, "tokens": 77},
        {"batch": 3, "height": 8, "width": 24, "tokens": 154},
    ):
        whole, shallow = both(parts, runtime, sizes)
        assert np.abs(whole).max() > 0.1
        np.testing.assert_allclose(shallow, whole, rtol=0, atol=1e-5 * np.ptp(whole))


def test_a_quantized_graph_is_cut_too(diffusion_artifact: Path, tmp_path: Path) -> None:
    from vitrify.export.quantize import quantize_weights

    unet = Artifact.load(diffusion_artifact).components["unet"]
    made = quantize_weights(unet, recipe("int8-weights"), tmp_path / "int8")
    whole, shallow = both(cut_in_place(made), "onnx", {"batch": 2, "height": 16, "width": 16, "tokens": 77})
    np.testing.assert_allclose(shallow, whole, rtol=0, atol=1e-5 * np.ptp(whole))


def test_a_graph_that_was_cut_is_cut_again(diffusion_artifact: Path, tmp_path: Path) -> None:
    unet = copied(diffusion_artifact, tmp_path / "a")
    once = cut_in_place(unet, 1)
    twice = cut_in_place(once["unet"], 2)
    assert list(twice["unet"].outputs) == ["out_sample", DEEP]
    assert twice["unet"].outputs[DEEP].shape[1] != once["unet"].outputs[DEEP].shape[1]
    whole, shallow = both(twice, "onnx", {"batch": 1, "height": 8, "width": 8, "tokens": 77})
    np.testing.assert_allclose(shallow, whole, rtol=0, atol=1e-5 * np.ptp(whole))


def test_more_layers_than_there_are_and_graphs_that_are_no_unets(
    diffusion_artifact: Path, vit_model: Any, tmp_path: Path
) -> None:
    unet = copied(diffusion_artifact, tmp_path / "a")
    before = unet.graph_path.read_bytes()
    with pytest.raises(BadInput, match=r"2 skip connections at its full size.*--step-cache 2 or less"):
        cut_in_place(unet, 3)
    assert unet.graph_path.read_bytes() == before
    with pytest.raises(BadInput, match=r"no 1 layers between them.*for UNets"):
        cut_in_place(replace(vit_model.components["onnx"], root=vit_model.components["onnx"].root))


def test_an_export_proves_both_and_says_how_it_was_made(cached: Path, diffusion_source: Path) -> None:
    artifact = Artifact.load(cached)
    shallow = artifact.components["unet_shallow"]
    assert shallow.proof["numeric"]["relative"] < 1e-5
    assert shallow.proof["numeric"]["reference"] == "unet of the same artifact"
    assert shallow.proof["weights"] == artifact.components["unet"].proof["weights"]
    assert artifact.model["step_cache"] == 1
    assert artifact.built["command"][-2:] == ["--step-cache", "1"] or "--step-cache 1" in str(artifact.built["command"])
    with pytest.raises(UsageError, match="--step-cache 4 is not 1 or 2 or 3"):
        export_model(diffusion_source, cached.with_name("other"), step_cache=4)


def test_a_classifier_has_no_features_to_keep(emotions_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no denoiser, whose features could be kept.*Leave --step-cache out"):
        export_model(emotions_source, tmp_path / "out", step_cache=1)


def test_steps_that_take_kept_features_draw_nearly_the_same(cached: Path) -> None:
    pipeline: Any = vitrify.load(cached, "cpu")
    plain = pipeline.generate(PROMPT, steps=STEPS, guidance=3, seed=2, batch=2)
    asked = {"2": 33, "3": 28, "0.02": 35}
    for step_cache, least in asked.items():
        done = pipeline.generate(PROMPT, steps=STEPS, guidance=3, seed=2, batch=2, step_cache=step_cache)
        assert done.parameters[0]["step_cache"] == step_cache
        for mine, other in zip(done.images, plain.images, strict=True):
            found = psnr(np.asarray(mine), np.asarray(other))
            assert found >= least, step_cache
    again = pipeline.generate(PROMPT, steps=STEPS, guidance=3, seed=2, batch=2)
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(plain.images[0]))
    pipeline.close()


def test_it_goes_with_components_in_turn_and_with_a_bound(cached: Path) -> None:
    from vitrify.core.machine import resident
    from vitrify.pipelines.budget import session_bytes

    asked: dict[str, Any] = {"steps": 6, "guidance": 3, "seed": 2, "step_cache": "2"}
    plain: Any = vitrify.load(cached, "cpu")
    expected = np.asarray(plain.generate(PROMPT, **asked).images[0])
    plain.close()
    unet = session_bytes(Artifact.load(cached).components["unet"])
    for how in ({"offload": "components"}, {"memory": resident() + 2 * unet}):
        pipeline: Any = vitrify.load(cached, "cpu", **how)
        for _ in range(2):
            drawn = np.asarray(pipeline.generate(PROMPT, **asked).images[0])
            assert psnr(drawn, expected) >= 50
        pipeline.close()


def test_the_shallow_graph_really_runs_most_steps(cached: Path) -> None:
    pipeline: Any = vitrify.load(cached, "cpu")
    calls = {"unet": 0, "unet_shallow": 0}
    for name in calls:
        session, run = pipeline.sessions[name], pipeline.sessions[name].run

        def counted(tensors: Any, name: str = name, run: Any = run) -> Any:
            calls[name] += 1
            return run(tensors)

        session.run = counted
    pipeline.generate(PROMPT, steps=STEPS, seed=2, step_cache="3")
    assert calls == {"unet": 4, "unet_shallow": 8}
    pipeline.close()


def test_a_lora_reaches_both_graphs(cached: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng, name = np.random.default_rng(0), "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q"
    from vitrify.runtimes.stored import stored_weights

    shape = stored_weights(Artifact.load(cached).components["unet_shallow"])[f"{name}.weight"].shape
    save_file(
        {
            f"unet.{name}.lora_A.weight": (rng.standard_normal((2, shape[1]))).astype(np.float32),
            f"unet.{name}.lora_B.weight": (rng.standard_normal((shape[0], 2))).astype(np.float32),
        },
        tmp_path / "strong.safetensors",
    )
    pipeline: Any = vitrify.load(cached, "cpu")
    whole = Artifact.load(cached).components["unet"]
    tensors = sample_inputs(whole, {"batch": 1, "height": 8, "width": 8, "tokens": 77}, seed=1)

    def both_run() -> tuple[np.ndarray, np.ndarray]:
        out, shallow = pipeline.sessions["unet"].run(tensors), pipeline.sessions["unet_shallow"]
        got = shallow.run({n: out[n] if n == DEEP else tensors[n] for n in shallow.inputs})
        return out["out_sample"], got["out_sample"]

    plain = both_run()
    pipeline.adapters.lay_on({str(tmp_path / "strong.safetensors"): 1.0})
    changed = both_run()
    assert np.abs(changed[0] - plain[0]).max() > 1e-2 * np.ptp(plain[0])
    np.testing.assert_allclose(changed[1], changed[0], rtol=0, atol=1e-5 * np.ptp(plain[0]))
    pipeline.adapters.lay_on({})
    np.testing.assert_array_equal(both_run()[1], plain[1])
    pipeline.close()


def test_an_artifact_without_it_says_what_to_do(
    diffusion_artifact: Path, tmp_path: Path, vitrify: Callable[..., Any]
) -> None:
    asked = ["generate", diffusion_artifact, PROMPT, "-o", tmp_path / "a.png", "--steps", 2, "--json"]
    refused = vitrify(*asked, "--step-cache", 2)
    assert refused.code == 2
    assert "no graph that takes deep features" in refused.error["what"]
    assert "--step-cache" in refused.error["fix"]
    for text in ("1", "0", "-1", "11", "2.5", "nan", "much"):
        assert vitrify(*asked, f"--step-cache={text}").code == 2, text
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("to", "quant"),
    [
        pytest.param("onnx", "int8-weights", marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", marks=pytest.mark.slow),
        pytest.param("openvino", "int8-weights", marks=pytest.mark.slow),
        ("torch", "fp32"),
    ],
)
def test_compiling_keeps_both(cached: Path, tmp_path: Path, to: str, quant: str) -> None:
    pytest.importorskip(to.replace("onnx", "onnxruntime"))
    from vitrify.export.compile import compile_model

    before = (cached / "unet/model.onnx").read_bytes(), (cached / "unet/shallow.onnx").read_bytes()
    made = compile_model(cached, tmp_path / "made", to=to, quant=quant, verify=to != "torch")
    assert before == ((cached / "unet/model.onnx").read_bytes(), (cached / "unet/shallow.onnx").read_bytes())
    if to == "torch":  # which keeps no features
        assert "unet_shallow" not in made.components
        assert list(made.components["unet"].outputs) == ["out_sample"]
        return
    assert made.components["unet_shallow"].proof["numeric"]["relative"] < 1e-4
    pipeline: Any = vitrify.load(made, "cpu")
    asked: dict[str, Any] = {"steps": STEPS, "guidance": 3, "seed": 2}
    plain, kept = pipeline.generate(PROMPT, **asked), pipeline.generate(PROMPT, step_cache="2", **asked)
    assert psnr(np.asarray(kept.images[0]), np.asarray(plain.images[0])) >= 30
    pipeline.close()


def test_a_graph_from_it_is_as_good_as_a_traced_one(cached: Path, diffusion_source: Path, tmp_path: Path) -> None:
    export_model(diffusion_source, tmp_path / "plain", graph_from=cached, verify=False)
    manifest = json.loads((tmp_path / "plain/artifact.json").read_text())
    assert "unet_shallow" not in manifest["components"]
    assert [o["name"] for o in manifest["components"]["unet"]["outputs"]] == ["out_sample"]
