"""Pictures of SD 3.5, Flux and Sana, tiny and random, whose steps keep features: beside diffusers', cut by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.export.compile import compile_model
from vitrify.export.job import export_model
from vitrify.proof.cut import prove_cut
from vitrify.proof.quality import psnr

from .tiny_pipelines import flux_pipeline, sana_pipeline, sd3_pipeline

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE, CAR = "a red apple on a table", "a blue car!!"
ASKED: dict[str, Any] = {"width": 64, "height": 32, "steps": 7, "seed": 7}
GUIDANCE = {"sd3": 5.0, "flux": 3.5, "sana": 4.5}


@contextmanager
def keeping(transformer: Any, interval: int) -> Iterator[list[bool]]:
    """diffusers' transformer, of whose calls every `interval`-th is whole; which ones were.

    In the others the blocks behind the first are taken to add what they added before.
    """
    calls: list[bool] = []
    seen: dict[str, Any] = {}

    def begin(module: Any, given: Any) -> None:
        calls.append(len(calls) % interval == 0)

    def first(block: Any, given: Any, out: Any) -> None:
        seen["first"] = out[-1] if isinstance(out, tuple) else out

    def last(norm: Any, given: Any) -> Any:
        if calls[-1]:
            seen["deep"] = given[0] - seen["first"]
            return None
        return (seen["first"] + seen["deep"], *given[1:])

    hooks = [
        transformer.register_forward_pre_hook(begin),
        transformer.transformer_blocks[0].register_forward_hook(first),
        transformer.norm_out.register_forward_pre_hook(last),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def tiny(clip_words: Any, t5_words: Any, save_tiny: Any, tmp_path_factory: Any) -> Callable[[str], tuple[Any, Path]]:
    """tiny(family): diffusers' pipeline and the folder of its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(family: str) -> tuple[Any, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            if family == "sd3":
                pipe = sd3_pipeline(clip_words, t5_words, t5=False, dual=(0,), norm="rms_norm", layers=3)
            elif family == "flux":
                pipe = flux_pipeline(clip_words, t5_words, "schnell", layers=2)
            else:
                pipe = sana_pipeline(layers=3)
            export_model(save_tiny(pipe, folder / "source"), folder / "artifact", step_cache=1, verify=True)
            pipe.set_progress_bar_config(disable=True)
            made[family] = pipe, folder / "artifact"
        return made[family]

    return model


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("family", ["sd3", "flux", "sana"])
def test_every_so_many_steps_one_is_whole(tiny: Any, family: str, runtime: str) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    pipe, folder = tiny(family)
    more = {"use_resolution_binning": False} if family == "sana" else {}
    more |= {"max_sequence_length": 256} if family == "flux" else {}
    prompts, size = [APPLE, CAR], {n: ASKED[n] for n in ("width", "height")}
    ours: Any = vitrify.load(folder, "cpu", runtime=runtime)
    try:
        drawn = {}
        for interval in (1, 3):
            streams = [torch.Generator().manual_seed(ASKED["seed"] + n) for n in range(2)]
            fresh = type(pipe.scheduler).from_config(pipe.scheduler.config)
            pipe.scheduler = fresh
            with keeping(pipe.transformer, interval) as calls:
                theirs = pipe(
                    prompts, generator=streams, num_inference_steps=ASKED["steps"], guidance_scale=GUIDANCE[family],
                    **size, **more,
                ).images  # fmt: skip
            assert calls == [n % interval == 0 for n in range(ASKED["steps"])]
            kept = None if interval == 1 else str(interval)
            drawn[interval] = ours.generate(prompts, guidance=GUIDANCE[family], step_cache=kept, **ASKED).images
            for mine, wanted in zip(drawn[interval], theirs, strict=True):
                assert np.asarray(wanted).std() > 10, "a grey square would prove nothing"
                assert psnr(np.asarray(mine), np.asarray(wanted)) >= 45
        assert psnr(np.asarray(drawn[1][0]), np.asarray(drawn[3][0])) < 45, "kept features change what is drawn"
        by_change = ours.generate(prompts, guidance=GUIDANCE[family], step_cache="0.000001", **ASKED).images
        np.testing.assert_array_equal(np.asarray(by_change[0]), np.asarray(drawn[1][0]))
    finally:
        ours.close()


@pytest.mark.parametrize(
    ("family", "to", "quant"), [("sd3", "openvino", "fp32"), ("flux", "onnx", "int8-static:samples=4")]
)
def test_compiling_keeps_both(tiny: Any, tmp_path: Path, family: str, to: str, quant: str) -> None:
    pytest.importorskip("openvino" if to == "openvino" else "onnxruntime")
    if quant != "fp32":
        pytest.importorskip("nncf", reason="needs vitrify[quant]")
    _, folder = tiny(family)
    made = compile_model(folder, tmp_path / "made", to=to, quant=quant, verify=False)  # pictures are compared for long
    _, found = prove_cut(made.components["transformer_shallow"], made)
    assert max(one.relative for one in found) < (1e-4 if quant == "fp32" else 2e-2)
    opened: Any = vitrify.load(made.root, "cpu")
    try:
        asked = ASKED | {"guidance": GUIDANCE[family]}
        plain, kept = (opened.generate(APPLE, step_cache=s, **asked).images[0] for s in (None, "0.000001"))
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(kept))
        assert np.asarray(opened.generate(APPLE, step_cache="2", **asked).images[0]).std() > 10
    finally:
        opened.close()
