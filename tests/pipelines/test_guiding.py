"""Steps that go without the negative prompt: which ones, what stands for it, and together with kept features."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.errors import BadInput, UsageError
from vitrify.core.registry import load_runtime
from vitrify.core.tensors import Array
from vitrify.pipelines.guiding import Guide, Guiding, parse_interval
from vitrify.pipelines.presets import PRESETS, opened_with
from vitrify.pipelines.saving import Saving
from vitrify.pipelines.schedulers import scheduler_from_config
from vitrify.proof.quality import psnr
from vitrify.runtimes.base import Options

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

PROMPT, STEPS, GUIDANCE = "a red apple", 8, 3.0


class Recorded:
    """A session whose calls are kept."""

    def __init__(self, session: Any) -> None:
        self.session, self.calls = session, list[tuple[Mapping[str, Array], Mapping[str, Array]]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        out = self.session.run(tensors)
        self.calls.append((dict(tensors), out))
        return out

    @property
    def rows(self) -> list[int]:
        return [len(given["sample"]) for given, _ in self.calls]


def drawn(artifact: Path, **options: Any) -> tuple[Any, dict[str, Recorded]]:
    pipeline: Any = vitrify.load(artifact, "cpu", options=Options(threads=1))
    found = {}
    for name in ("unet", "unet_shallow"):
        if name in pipeline.sessions:
            found[name] = pipeline.sessions[name] = Recorded(pipeline.sessions[name])
    try:
        asked = {"steps": STEPS, "guidance": GUIDANCE, "seed": 3, "scheduler": "ddim"} | options
        return pipeline.generate(PROMPT, **asked), found
    finally:
        pipeline.close()


def test_a_step_without_the_negative_prompt_adds_what_guidance_added_before(diffusion_artifact: Path) -> None:
    latents = []
    made, sessions = drawn(diffusion_artifact, guidance_every=2, on_step=lambda step: latents.append(step.latents))
    unet = sessions["unet"]
    assert unet.rows == [2, 1] * (STEPS // 2)
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu")
    scheduler = scheduler_from_config(pipeline.scheduler, "ddim")
    scheduler.set_timesteps(STEPS)
    now, added = unet.calls[0][0]["sample"][:1], np.zeros(0)
    for index, (_, out) in enumerate(unet.calls):
        if index % 2 == 0:
            negative, positive = np.split(out["out_sample"], 2)
            added = positive - negative
        else:
            positive = out["out_sample"]
        now = scheduler.step(positive + np.float32(GUIDANCE - 1) * added, index, now, None)
        np.testing.assert_allclose(latents[index], now, rtol=0, atol=2e-6 * np.ptp(now))
        now = latents[index]
    pipeline.close()
    assert made.parameters[0]["guidance_every"] == 2


def test_guidance_in_a_part_of_the_steps(diffusion_artifact: Path) -> None:
    made, sessions = drawn(diffusion_artifact, guidance_interval=(0.25, 0.75))
    assert sessions["unet"].rows == [1, 1, 2, 2, 2, 2, 1, 1]
    assert made.parameters[0]["guidance_interval"] == [0.25, 0.75]
    whole, _ = drawn(diffusion_artifact)
    assert made.images[0].tobytes() != whole.images[0].tobytes()


def test_all_of_the_steps_are_what_they_were(diffusion_artifact: Path) -> None:
    usual, _ = drawn(diffusion_artifact)
    made, sessions = drawn(diffusion_artifact, guidance_interval=(0.0, 1.0), guidance_every=1, decoder="vae")
    assert sessions["unet"].rows == [2] * STEPS
    assert made.images[0].tobytes() == usual.images[0].tobytes()
    assert made.parameters == usual.parameters


def test_a_shallow_call_has_the_rows_of_the_whole_one_before_it(cached_artifact: Path) -> None:
    _, sessions = drawn(cached_artifact, step_cache="2", guidance_every=2)
    assert sessions["unet"].rows == [2, 1, 2, 1]
    assert sessions["unet_shallow"].rows == [2, 1, 2, 1]
    # one more call is whole where guidance begins, and its end asks for none
    _, sessions = drawn(cached_artifact, step_cache="4", guidance_interval=(0.25, 0.8))
    assert sessions["unet"].rows == [1, 2, 2]
    assert sessions["unet_shallow"].rows == [1, 2, 2, 2, 1]


def test_within_a_bound_the_rows_are_called_alone_and_the_picture_is_the_same(cached_artifact: Path) -> None:
    options: dict[str, Any] = {"step_cache": "3", "guidance_every": 2}
    usual, _ = drawn(cached_artifact, **options)
    pipeline: Any = vitrify.load(cached_artifact, "cpu", memory=20_000_000_000, options=Options(threads=1))
    asked = {"steps": STEPS, "guidance": GUIDANCE, "seed": 3, "scheduler": "ddim"}
    bound = pipeline.generate(PROMPT, **asked, **options)
    pipeline.close()
    assert "unet called once a row" in bound.memory["done"]
    assert psnr(np.asarray(usual.images[0]), np.asarray(bound.images[0])) > 60


def test_the_fast_preset_keeps_the_picture(cached_artifact: Path) -> None:
    whole, _ = drawn(cached_artifact, steps=20)
    fast, sessions = drawn(cached_artifact, steps=20, preset="fast")
    assert sessions["unet"].rows == [2] * 10
    assert not fast.notes
    assert psnr(np.asarray(whole.images[0]), np.asarray(fast.images[0])) > 28
    own, sessions = drawn(cached_artifact, preset="fast", guidance_every=2, step_cache="4")
    assert sessions["unet"].rows == [2, 1]
    assert own.parameters[0]["step_cache"] == "4"


def test_a_preset_says_what_it_cannot_do(diffusion_artifact: Path) -> None:
    fast, sessions = drawn(diffusion_artifact, preset="fast")
    assert sessions["unet"].rows == [2] * STEPS
    assert any("--step-cache" in note for note in fast.notes)
    with pytest.raises(BadInput, match="no graph that takes deep features"):
        drawn(diffusion_artifact, preset="fast", step_cache="3")


def test_without_guidance_nothing_of_it_is_left_out(diffusion_artifact: Path) -> None:
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", options=Options(threads=1))
    made = pipeline.generate(PROMPT, steps=2, guidance=1.0, seed=3, guidance_every=2)
    plain = pipeline.generate(PROMPT, steps=2, guidance=1.0, seed=3)
    pipeline.close()
    assert made.images[0].tobytes() == plain.images[0].tobytes()
    assert any("Guidance is off" in note for note in made.notes)


def test_a_decoder_that_is_not_there(diffusion_artifact: Path) -> None:
    with pytest.raises(BadInput, match="no decoder for previews") as caught:
        drawn(diffusion_artifact, decoder="preview")
    assert "--preview-vae" in caught.value.fix


@pytest.mark.parametrize(
    ("interval", "every"),
    [((0.5, 0.5), 1), ((-0.1, 1), 1), ((0, 1.1), 1), ((0, float("nan")), 1), (None, 0), (None, 11)],
)
def test_what_is_no_guiding(interval: Any, every: int) -> None:
    with pytest.raises(UsageError, match=r"guidance interval|Guidance every"):
        Guiding.of(interval, every)


def test_intervals_are_read() -> None:
    assert parse_interval("0.1:0.8") == (0.1, 0.8)
    assert parse_interval(":0.8") == (0.0, 0.8)
    assert parse_interval("0.1:") == (0.1, 1.0)
    for text in ("", "0.1", "a:b", "0.1:nan"):
        with pytest.raises(UsageError, match="guidance interval"):
            parse_interval(text)


def test_guidance_is_the_formula() -> None:
    guide = Guide(7.5, Guiding(), 1, guided=True)
    negative, positive = np.float32([[1, 2]]), np.float32([[3, 5]])
    assert guide.wants_whole(0)
    assert guide.both(0, whole=True)
    found = guide.combined(np.concatenate([negative, positive]), 0, both=True)
    np.testing.assert_allclose(found, [[1 + 7.5 * 2, 2 + 7.5 * 3]])


def test_what_a_user_gives_goes_before_a_preset() -> None:
    assert opened_with(None, Options(), "auto") == (Options(), "auto")
    options, offload = opened_with("small", Options(threads=3), "auto")
    assert (options.threads, options.arena, offload) == (3, False, "components")
    assert options.resident_weights
    assert opened_with("small", Options(), "none")[1] == "none"
    for name in PRESETS:
        Saving.of(name)
    with pytest.raises(UsageError, match="no preset 'quick'"):
        Saving.of("quick")
    with pytest.raises(UsageError, match="no decoder"):
        Saving.of(decoder="taesd")


def test_what_a_runtime_does_not_have_of_a_preset_is_told(diffusion_artifact: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    options, offload = opened_with("small", Options(threads=1), "auto")
    told: list[str] = []
    vitrify.load(
        diffusion_artifact, "cpu", options=options, offload=offload, runtime="openvino", say=told.append
    ).close()
    assert told == ["without resident_weights, which openvino does not have; the rest of the preset is done"]
    with pytest.raises(UsageError, match="no option resident_weights"):
        vitrify.load(diffusion_artifact, "cpu", options=Options(resident_weights=1), runtime="openvino")


def test_exact_on_a_runtime_that_takes_any_size_alone_says_so(diffusion_artifact: Path) -> None:
    told: list[str] = []
    options, offload = opened_with("exact", Options(threads=1), "auto")
    vitrify.load(diffusion_artifact, "cpu", options=options, offload=offload, say=told.append).close()
    assert told == ["without static, which onnx does not have; the rest of the preset is done"]


def test_what_a_session_cannot_do_of_a_preset_is_told_once(
    diffusion_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model's weights are stored in float16, and computed in a copy."""
    if sys.platform != "linux":
        pytest.skip("needs Linux, which says what a process maps")
    told: list[str] = []
    opened = list[str]()
    runtime = load_runtime("onnx")
    before = runtime.open
    monkeypatch.setattr(runtime, "open", lambda one, *rest: (opened.append(one.name), before(one, *rest))[1])
    options = Options(threads=1, resident_weights=10_000, optional=("resident_weights",))
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", options=options, offload="components", say=told.append)
    for _ in range(2):
        pipeline.generate(PROMPT, steps=1, seed=1)
    pipeline.close()
    about = [line for line in told if line.startswith("unet without resident_weights: ")]
    assert opened.count("unet") == 2
    assert len(about) == 1
    assert "the library copied" in about[0]


@pytest.mark.parametrize("preset", ["exact", "fast"])
def test_presets_on_openvino(cached_artifact: Path, preset: str) -> None:
    """Exact draws the same; of fast's eight steps four are whole, and the picture is nearly the same."""
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    pictures, calls, static = [], list[int](), list[bool]()
    for wanted in (None, preset):
        options, offload = opened_with(wanted, Options(threads=1), "auto")
        pipeline: Any = vitrify.load(cached_artifact, "cpu", options=options, offload=offload, runtime="openvino")
        static.append(pipeline.sessions["unet"]._static)
        whole = pipeline.sessions["unet"] = Recorded(pipeline.sessions["unet"])
        made = pipeline.generate(PROMPT, steps=STEPS, guidance=GUIDANCE, seed=3, scheduler="ddim", preset=wanted)
        pipeline.close()
        pictures.append(np.asarray(made.images[0]))
        calls.append(len(whole.calls))
    assert static == [False, preset == "exact"]
    assert calls == [STEPS, STEPS if preset == "exact" else STEPS // 2]
    assert psnr(*pictures) > (45 if preset == "exact" else 28)
