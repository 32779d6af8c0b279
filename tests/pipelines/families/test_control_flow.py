"""ControlNets of SD 3, Flux and Sana, tiny and random, beside diffusers' own pipelines.

diffusers samples SD 3's control picture without the request's random numbers; that of the VAE here has next to no
variance, so that there is nothing to draw. Its pipeline for Sana takes one ControlNet, and that for all steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput
from vitrify.export.job import export_model
from vitrify.pipelines.control import ControlUnit, residual_inputs
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
SIZE = {"width": 64, "height": 32}
RUNTIMES = ("onnx", "openvino")
# name -> what differs from its transformer's config; fewer blocks than that has, and no divisor of their number
NETS: dict[str, dict[str, dict[str, Any]]] = {
    "sd3": {
        "one": {"num_layers": 3},
        "other": {"num_layers": 3},
        "pooled": {"num_layers": 2, "force_zeros_for_pooled_projection": False},
    },
    "flux": {
        "one": {"num_layers": 2, "num_single_layers": 2},
        "other": {"num_layers": 2, "num_single_layers": 2},
        "double": {"num_layers": 2, "num_single_layers": 0, "guidance_embeds": False},
    },
    "sana": {"one": {"num_layers": 1}},
}
CASES: dict[str, dict[str, Any]] = {
    "one": {"nets": ["one"], "strengths": [1.0], "starts": [0.0], "ends": [1.0]},
    "strong and late": {"nets": ["other"], "strengths": [1.6], "starts": [0.2], "ends": [1.0]},
    "two": {"nets": ["one", "other"], "strengths": [0.8, 1.2], "starts": [0.0, 0.25], "ends": [0.7, 1.0]},
}
CLASSES = {
    "sd3": ("SD3ControlNetModel", "StableDiffusion3ControlNetPipeline"),
    "flux": ("FluxControlNetModel", "FluxControlNetPipeline"),
    "sana": ("SanaControlNetModel", "SanaControlNetPipeline"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sd3": {"negative_prompt": "blurry"}, "flux": {}, "sana": {"use_resolution_binning": False},
}  # fmt: skip
GUIDANCE = {"sd3": 5.0, "flux": 3.5, "sana": 4.5}


@dataclass(frozen=True)
class Made:
    """diffusers' pipeline of a family and its ControlNets, and the folder of our artifacts: model, and one a net.

    options: what pipelines are told besides their parts.
    """

    pipe: Any
    nets: dict[str, Any]
    folder: Path
    options: dict[str, Any]

    def pipeline(self, kind: Any, **more: Any) -> Any:
        """A pipeline of another class with the same parts, and a fresh scheduler: they remember their last run."""
        parts = {name: part for name, part in self.pipe.components.items() if part is not None}
        parts["scheduler"] = type(parts["scheduler"]).from_config(parts["scheduler"].config)
        pipe = kind(**{**self.options, **parts}, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, prompts: list[str], case: dict[str, Any], images: list[Any], kind: Any, **options: Any) -> Any:
        """diffusers' pictures, seed 11 and on."""
        nets = [self.nets[name] for name in case["nets"]]
        one = len(nets) == 1
        pipe = self.pipeline(kind, controlnet=nets[0] if one else nets)
        strengths = case["strengths"]
        when = {"control_guidance_start": case["starts"], "control_guidance_end": case["ends"]}
        if "control_guidance_start" not in inspect.signature(kind.__call__).parameters:
            when = {}
        streams = [torch.Generator().manual_seed(11 + i) for i in range(len(prompts))]
        return pipe(
            prompts, control_image=images[0] if one else images, generator=streams, **options,
            controlnet_conditioning_scale=strengths[0] if one else strengths, **when,
        ).images  # fmt: skip


@pytest.fixture(scope="module")
def made(clip_words: Any, t5_words: Any, save_tiny: Any, tmp_path_factory: Any) -> Callable[[str], Made]:
    """made(family): each is made once."""
    known: dict[str, Made] = {}

    def one(family: str) -> Made:
        if family in known:
            return known[family]
        folder = tmp_path_factory.mktemp(f"control-{family}")
        if family == "sd3":
            pipe = sd3_pipeline(clip_words, t5_words, t5=False, dual=(0,), norm="rms_norm", layers=5)
        else:
            pipe = flux_pipeline(clip_words, t5_words, "dev", layers=3) if family == "flux" else sana_pipeline(layers=3)
        kind = getattr(diffusers, CLASSES[family][0])
        save_tiny(pipe, folder / "source")
        if family == "sd3":
            with torch.no_grad():
                pipe.vae.encoder.conv_out.weight[16:] = 0
                pipe.vae.encoder.conv_out.bias[16:] = -30
            pipe.vae.save_pretrained(folder / "source/vae")
        export_model(folder / "source", folder / "model", control=True, verify=True)
        nets = {}
        for number, (name, changes) in enumerate(NETS[family].items()):
            nets[name] = kind.from_config({**pipe.transformer.config, **changes})
            saved = SimpleNamespace(components={"net": nets[name]}, save_pretrained=nets[name].save_pretrained)
            save_tiny(saved, folder / f"source-{name}", seed=20 + number)
            export_model(folder / f"source-{name}", folder / name, verify=True)
        without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
        known[family] = Made(pipe, nets, folder, without)
        return known[family]

    return one


@pytest.fixture(scope="module", params=RUNTIMES)
def opened(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Iterator[Callable[[str, str], Any]]:
    """opened(family, "model" or a net's name): our side of it, on one of the runtimes."""
    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    known: dict[tuple[str, str], Any] = {}

    def one(family: str, name: str) -> Any:
        key = family, name
        if key not in known:
            known[key] = vitrify.load(made(family).folder / name, "cpu", runtime=request.param)
        return known[key]

    yield one
    for pipeline in known.values():
        pipeline.close()


def control_pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray((rng.random((h, w, 3)) > 0.8).astype(np.uint8) * 255) for h, w in ((40, 60), (32, 48))]


def units(opened: Any, family: str, case: dict[str, Any], pictures: list[Any]) -> list[ControlUnit]:
    nets = [opened(family, name) for name in case["nets"]]
    rows = zip(pictures, nets, case["strengths"], case["starts"], case["ends"], strict=True)
    return [ControlUnit(*row) for row in rows]


def same(images: list[Any], expected: list[Any], alone: list[Any]) -> None:
    assert len(images) == len(expected) == len(alone)
    for one, wanted, without in zip(images, expected, alone, strict=True):
        assert np.asarray(wanted).std() > 10, "a grey square would prove nothing"
        assert psnr(np.asarray(one), np.asarray(wanted)) >= 45
        assert psnr(np.asarray(without), np.asarray(wanted)) < 40, "control changes the picture"


@pytest.mark.parametrize(
    ("family", "case", "guidance"),
    [
        *((family, case, GUIDANCE[family]) for family in ("sd3", "flux") for case in CASES),
        *((family, "one", 1.0) for family in CLASSES),
        ("sana", "one", GUIDANCE["sana"]),
    ],
)
def test_it_draws_what_diffusers_draws(
    made: Any, opened: Any, cell: Any, family: str, case: str, guidance: float
) -> None:
    ours, asked = opened(family, "model"), CASES[case]
    cell(family, "ControlNet", ours.placement["transformer"]["runtime"])
    pictures = control_pictures()[: len(asked["nets"])]
    expected = made(family).draw(
        [APPLE], asked, pictures, getattr(diffusers, CLASSES[family][1]), num_inference_steps=5,
        guidance_scale=guidance, **SIZE, **OPTIONS[family],
    )  # fmt: skip
    request: dict[str, Any] = {"steps": 5, "guidance": guidance, "seed": 11, **SIZE}
    request["negative_prompt"] = OPTIONS[family].get("negative_prompt", "")
    alone = ours.generate([APPLE], **request).images
    drawn = ours.generate([APPLE], control=units(opened, family, asked, pictures), **request).images
    same(drawn, expected, alone)


@pytest.mark.parametrize(("family", "name"), [("sd3", "pooled"), ("flux", "double")])
def test_a_batch_with_a_net_of_another_kind(made: Any, opened: Any, family: str, name: str) -> None:
    """Of SD 3, one that is told the pooled text and sees shifted latents; of Flux, one without single blocks that is
    not told the guidance. Each picture follows its own control."""
    ours = opened(family, "model")
    case = CASES["one"] | {"nets": [name], "strengths": [0.9]}
    pictures = [[one.resize((64, 32)) for one in control_pictures()]]
    options = {"num_inference_steps": 4, "guidance_scale": GUIDANCE[family]}
    kind = getattr(diffusers, CLASSES[family][1])
    expected = made(family).draw([APPLE, CAR], case, pictures, kind, **options, **SIZE)
    request: dict[str, Any] = {"steps": 4, "guidance": GUIDANCE[family], "seed": 11, **SIZE}
    alone = ours.generate([APPLE, CAR], **request).images
    drawn = ours.generate([APPLE, CAR], control=units(opened, family, case, pictures), **request).images
    same(drawn, expected, alone)


def test_a_picture_is_changed_under_control(made: Any, opened: Any, photo: Any) -> None:
    """Random numbers are drawn for the control picture before those for the picture to start from."""
    ours, case, pictures = opened("flux", "model"), CASES["one"], control_pictures()[:1]
    expected = made("flux").draw(
        [APPLE], case, pictures, diffusers.FluxControlNetImg2ImgPipeline, image=photo(64, 32), strength=0.7,
        num_inference_steps=5, guidance_scale=3.5, **SIZE,
    )  # fmt: skip
    request: dict[str, Any] = {"steps": 5, "guidance": 3.5, "seed": 11, "image": photo(64, 32), "strength": 0.7, **SIZE}
    alone = ours.generate([APPLE], **request).images
    drawn = ours.generate([APPLE], control=units(opened, "flux", case, pictures), **request).images
    same(drawn, expected, alone)


@pytest.mark.parametrize("family", CLASSES)
def test_without_control_it_draws_what_the_plain_model_draws(made: Any, opened: Any, family: str) -> None:
    pipe = made(family).pipeline(type(made(family).pipe))
    options = {"num_inference_steps": 4, "guidance_scale": GUIDANCE[family], **SIZE}
    options |= {"use_resolution_binning": False} if family == "sana" else {}
    expected = np.asarray(pipe(APPLE, generator=[torch.Generator().manual_seed(2)], **options).images[0])
    request: dict[str, Any] = {"steps": 4, "guidance": GUIDANCE[family], "seed": 2, **SIZE}
    ours = opened(family, "model")
    drawn = np.asarray(ours.generate(APPLE, **request).images[0])
    assert psnr(drawn, expected) >= 45
    unit = ControlUnit(control_pictures()[0], opened(family, "one"), end=0.2)  # no step lies in it
    if family != "flux":  # which draws for the control picture
        np.testing.assert_array_equal(ours.generate(APPLE, control=[unit], **request).images[0], drawn)


def test_a_net_of_another_model_is_refused(opened: Any) -> None:
    picture = control_pictures()[0]
    for family, other, said in (
        ("sd3", "flux", "it gives single_residual_0, which the model does not take"),
        ("flux", "sd3", "it reads text of 64 numbers a token, the model of 32"),
        ("sana", "sd3", "its block_residual_0 has 32 channels, the model's 24"),
    ):
        unit = ControlUnit(picture, opened(other, "one"))
        with pytest.raises(BadInput, match=f"is not for this model: {said}"):
            opened(family, "model").generate(APPLE, control=[unit], steps=2, **SIZE)


@pytest.mark.parametrize(("family", "blocks", "given"), [("sd3", 4, 3), ("flux", 6, 4), ("sana", 2, 1)])
def test_artifacts_say_what_they_take_and_give(made: Any, family: str, blocks: int, given: int) -> None:
    folder = made(family).folder
    model, net = Artifact.load(folder / "model"), Artifact.load(folder / "one")
    names = residual_inputs(model.components["transformer"])
    assert len(names) == model.pipeline["control"]["residuals"] == blocks
    shapes = {model.components["transformer"].inputs[n].shape[:2] for n in names}
    single = {("single_batch", "single_tokens")} if family == "flux" else set()
    assert shapes == {("control_batch", "control_tokens")} | single
    assert (net.pipeline["family"], net.pipeline["control"]["residuals"]) == ("controlnet", given)
    assert len(net.components["controlnet"].outputs) == given
    for component in (model.components["transformer"], net.components["controlnet"]):
        assert component.proof["graph"]["relative"] <= 1e-4
        assert component.proof["numeric"]["relative"] <= 1e-4
    assert [s["control_tokens"] for s in model.components["transformer"].proof["graph"]["shapes"]][-1] == 1
