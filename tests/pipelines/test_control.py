"""ControlNets inside a generation: the rules by themselves, and whole pictures beside diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.errors import BadInput, NotFinite, UsageError
from vitrify.core.tensors import DType, TensorSpec
from vitrify.pipelines.control import ControlNet, Controls, ControlUnit, prepared_pictures, residual_inputs
from vitrify.pipelines.families.base import Family

F32 = DType.FLOAT32
BASE = {
    "sample": TensorSpec(F32, ("batch", 4, "height", "width")),
    "timestep": TensorSpec(F32, ()),
    "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", 6)),
}
RESIDUALS = {
    "down_residual_0": TensorSpec(F32, ("control_batch", 8, "control_height_0", "control_width_0")),
    "mid_residual": TensorSpec(F32, ("control_batch", 12, "control_height_1", "control_width_1")),
}
NET = BASE | {
    "controlnet_cond": TensorSpec(F32, ("batch", 3, "picture_height", "picture_width")),
    "conditioning_scale": TensorSpec(F32, ()),
}
GIVES = {
    "down_residual_0": TensorSpec(F32, ("batch", 8, "height", "width")),
    "mid_residual": TensorSpec(F32, ("batch", 12, "height_1", "width_1")),
}


class Known:
    """A session whose residuals tell what it was given: the picture's mean times the strength, one number a row."""

    def __init__(self, inputs: Any = NET, outputs: Any = GIVES) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.seen: list[dict[str, Any]] = []

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append(dict(tensors))
        rows = tensors["controlnet_cond"].mean(axis=(1, 2, 3)) * tensors["conditioning_scale"]
        height, width = tensors["sample"].shape[2:]
        shapes = {"down_residual_0": (8, height, width), "mid_residual": (12, height // 2, width // 2)}
        return {
            n: np.broadcast_to(rows[:, None, None, None], (len(rows), *s)).astype(np.float32) for n, s in shapes.items()
        }


def net(session: Known | None = None, scale: int = 4, pooled: bool = False) -> ControlNet:
    settings = {"control": {"residuals": 2, "scale": scale, "pooled": pooled}}
    return ControlNet({"controlnet": session or Known()}, settings, Path("net"))  # type: ignore[dict-item]


DENOISER: Any = Known(BASE | RESIDUALS, {})
PLAIN: Any = Known(BASE, {})
GREY, WHITE = (Image.new("RGB", (32, 16), (v, v, v)) for v in (51, 255))


def controls(*units: ControlUnit, count: int = 2, denoiser: Any = DENOISER) -> Controls:
    family, unused = Family({}, {}, Path()), None
    pictures = prepared_pictures(units, (16, 32), count, family, unused, unused)  # type: ignore[arg-type]
    return Controls(units, pictures, denoiser, family, 4)


def residuals(made: Controls, step: int = 0, steps: int = 4, guided: bool = True, count: int = 2) -> dict[str, Any]:
    rows = {"encoder_hidden_states": np.arange(count * (1 + guided) * 5 * 6, dtype=np.float32).reshape(-1, 5, 6)}
    sample = np.ones((count, 4, 4, 8), np.float32)
    return made.residuals(sample, 500.0, rows, step, steps, guided=guided)


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [(0, 1, [1, 1, 1, 1, 1]), (0, 0.5, [1, 1, 0, 0, 0]), (0.5, 1, [0, 0, 0, 1, 1]), (0.2, 0.6, [0, 1, 1, 0, 0])],
)
def test_a_controlnet_works_from_start_to_end(start: float, end: float, kept: list[int]) -> None:
    unit = ControlUnit(GREY, net(), start=start, end=end)
    by_diffusers = [1 - int(i / 5 < start or (i + 1) / 5 > end) for i in range(5)]
    assert [int(unit.works(i, 5)) for i in range(5)] == by_diffusers == kept


def test_both_halves_get_the_residuals_and_the_picture_once_each() -> None:
    session = Known()
    found = residuals(controls(ControlUnit(GREY, net(session), strength=0.5)))
    given = session.seen[0]
    assert {n: v.shape for n, v in given.items()} == {
        "sample": (4, 4, 4, 8), "timestep": (), "encoder_hidden_states": (4, 5, 6),
        "controlnet_cond": (4, 3, 16, 32), "conditioning_scale": (),
    }  # fmt: skip
    assert {n: v.shape for n, v in found.items()} == {"down_residual_0": (4, 8, 4, 8), "mid_residual": (4, 12, 2, 4)}
    np.testing.assert_allclose(found["mid_residual"], 0.1, rtol=1e-6)
    assert given["timestep"] == 500
    assert given["controlnet_cond"].dtype == np.float32


def test_without_guidance_a_row_is_a_picture() -> None:
    found = residuals(controls(ControlUnit(GREY, net())), guided=False)
    assert found["down_residual_0"].shape == (2, 8, 4, 8)


def test_each_picture_may_have_a_control_picture_of_its_own() -> None:
    found = residuals(controls(ControlUnit([GREY, WHITE], net())))
    np.testing.assert_allclose(found["mid_residual"][:, 0, 0, 0], [0.2, 1, 0.2, 1], rtol=1e-6)
    with pytest.raises(BadInput, match="3 control pictures for 2"):
        controls(ControlUnit([GREY, WHITE, GREY], net()))


def test_residuals_of_several_controlnets_are_summed() -> None:
    units = ControlUnit(GREY, net(), 0.5), ControlUnit(WHITE, net(), 2.0, end=0.5)
    made = controls(*units)
    np.testing.assert_allclose(residuals(made, 0)["down_residual_0"], 2.1, rtol=1e-6)
    np.testing.assert_allclose(residuals(made, 3)["down_residual_0"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("units", [(), (ControlUnit(GREY, net(), end=0.25),), (ControlUnit(GREY, net(), 0.0),)])
def test_nothing_to_add_is_zeros_of_one_pixel(units: tuple[ControlUnit, ...]) -> None:
    found = residuals(controls(*units), step=2)
    assert {n: v.shape for n, v in found.items()} == {"down_residual_0": (1, 8, 1, 1), "mid_residual": (1, 12, 1, 1)}
    assert not any(v.any() for v in found.values())


def test_a_model_without_residuals_is_given_none() -> None:
    assert residual_inputs(PLAIN) == []
    assert residuals(controls(denoiser=PLAIN)) == {}
    with pytest.raises(BadInput, match="takes no ControlNet") as caught:
        controls(ControlUnit(GREY, net()), denoiser=PLAIN)
    assert "--control" in caught.value.fix


def test_pooled_residuals_are_for_the_wanted_half_alone() -> None:
    session = Known()
    found = residuals(controls(ControlUnit(GREY, net(session, pooled=True))))
    assert session.seen[0]["encoder_hidden_states"][0, 0, 0] == 60, "the second half of the rows"
    assert len(session.seen[0]["controlnet_cond"]) == 2
    np.testing.assert_allclose(found["mid_residual"][:, 0, 0, 0], [0, 0, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"outputs": {n: GIVES[n] for n in ["mid_residual"]}}, "gives no down_residual_0"),
        ({"outputs": GIVES | {"down_residual_1": GIVES["mid_residual"]}}, "does not take"),
        (
            {"outputs": GIVES | {"mid_residual": TensorSpec(F32, ("batch", 20, "h", "w"))}},
            "20 channels, the model's 12",
        ),
        ({"inputs": NET | {"encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", 9))}}, "9 numbers a token"),
        ({"inputs": NET | {"text_embeds": TensorSpec(F32, ("batch", 9))}}, "reads text_embeds"),
    ],
)
def test_a_controlnet_of_another_model_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        controls(ControlUnit(GREY, net(Known(**changed))))
    with pytest.raises(BadInput, match="8 pixels a latent"):
        controls(ControlUnit(GREY, net(scale=8)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("strength", -1.0), ("strength", float("nan")), ("strength", 101.0), ("end", 0.0), ("end", 1.5), ("start", -0.1)],
)
def test_numbers_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError):
        ControlUnit(GREY, net(), **{name: value})


class Broken(Known):
    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {n: v * np.float32("nan") for n, v in super().run(tensors).items()}


def test_nan_names_the_controlnet() -> None:
    with pytest.raises(NotFinite, match="controlnet"):
        residuals(controls(ControlUnit(GREY, net(Broken()))))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_picture_is_prepared_as_diffusers_does(mode: str) -> None:
    processors = pytest.importorskip("diffusers.image_processor", reason="needs the extra export")
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)).convert(mode)
    made = processors.VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    expected = made.preprocess(picture, height=16, width=32).numpy()
    session = Known()
    residuals(controls(ControlUnit(picture, net(session)), count=1), count=1, guided=False)
    np.testing.assert_array_equal(session.seen[0]["controlnet_cond"], expected)


# --- whole pictures -----------------------------------------------------------------------------------------------

PROMPT, NEGATIVE, SIZE = "a red apple on a table", "blurry", {"width": 48, "height": 32}
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
    "pad_token_id": 1, "projection_dim": 24,
}  # fmt: skip
UNET = {
    "sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64, 64), "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32, "norm_num_groups": 8,
}  # fmt: skip
SIZES = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 64,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8, "use_linear_projection": True,
}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
RUNTIMES = ("onnx", "openvino")
CASES: dict[str, dict[str, Any]] = {
    "one": {"strengths": [1.0], "starts": [0.0], "ends": [1.0]},
    "strong and late": {"strengths": [1.6], "starts": [0.2], "ends": [1.0]},
    "two": {"strengths": [0.8, 1.2], "starts": [0.0, 0.25], "ends": [0.7, 1.0]},
}


def models(tokenizer: Path, large: bool) -> tuple[Any, list[Any]]:
    """A tiny random pipeline, and two ControlNets for it whose last layers do something."""
    import diffusers
    import transformers

    torch = pytest.importorskip("torch")
    torch.manual_seed(7)
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    text = transformers.CLIPTextConfig(**TEXT)
    unet = diffusers.UNet2DConditionModel(**(UNET | (SIZES if large else {}))).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
        scaling_factor=0.18215,
    ).eval()  # fmt: skip
    nets = []
    for _ in range(2):
        made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
        nets.append(made)
    parts: dict[str, Any] = {
        "vae": vae, "text_encoder": transformers.CLIPTextModel(text).eval(), "tokenizer": words, "unet": unet,
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False),
    }  # fmt: skip
    if large:
        parts |= {"text_encoder_2": transformers.CLIPTextModelWithProjection(text).eval(), "tokenizer_2": words}
        return diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False), nets
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts), nets


@pytest.fixture(scope="module", params=["sd", pytest.param("sdxl", marks=pytest.mark.slow)])  # which traces for minutes
def family(request: pytest.FixtureRequest, diffusion_source: Path, tmp_path_factory: Any) -> Iterator[Any]:
    """diffusers' pipeline and nets, and ours, exported."""
    pytest.importorskip("torch", reason="needs the extra export")
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    import vitrify
    from vitrify.export.job import export_model

    if request.param == "sdxl":
        pytest.importorskip("vitrify.export.families.sdxl", reason="SDXL's export")
    folder = tmp_path_factory.mktemp(f"control-{request.param}")
    pipeline, nets = models(diffusion_source / "tokenizer", request.param == "sdxl")
    pipeline.save_pretrained(folder / "source")
    export_model(folder / "source", folder / "model", control=True, verify=True)
    for number, made in enumerate(nets):
        made.save_pretrained(folder / f"source-{number}")
        export_model(folder / f"source-{number}", folder / f"net-{number}", verify=True)
    names = ("model", "net-0", "net-1")
    opened = {r: [vitrify.load(folder / name, "cpu", runtime=r) for name in names] for r in RUNTIMES}
    yield pipeline, nets, opened, folder
    for one in (one for group in opened.values() for one in group):
        one.close()


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray((rng.random((h, w, 3)) > 0.8).astype(np.uint8) * 255) for h, w in ((40, 60), (32, 48))]


def units(nets: Any, case: dict[str, Any]) -> list[ControlUnit]:
    rows = zip(pictures(), nets, case["strengths"], case["starts"], case["ends"], strict=False)
    return [ControlUnit(p, n, s, a, e) for p, n, s, a, e in rows]


@pytest.mark.slow  # traces the graphs of two families
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("case", "guidance"), [*((case, 7.5) for case in CASES), ("one", 1.0)])
def test_it_draws_what_diffusers_draws(family: Any, case: str, guidance: float, runtime: str, cell: Any) -> None:
    import diffusers
    import torch

    pipeline, nets, opened, _ = family
    ours, *our_nets = opened[runtime]
    asked, count = CASES[case], len(CASES[case]["strengths"])
    large = "text_encoder_2" in pipeline.components
    cell("sdxl" if large else "sd", "ControlNet", runtime)
    kind = diffusers.StableDiffusionXLControlNetPipeline if large else diffusers.StableDiffusionControlNetPipeline
    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder" or v is not None}
    theirs = kind(
        **parts, controlnet=nets[0] if count == 1 else nets[:count],
        **({"add_watermarker": False} if large else {"requires_safety_checker": False}),
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    images = pictures()[:count]
    expected = theirs(
        PROMPT, image=images[0] if count == 1 else images, negative_prompt=NEGATIVE, num_inference_steps=5,
        guidance_scale=guidance, generator=[torch.Generator().manual_seed(11)],
        controlnet_conditioning_scale=asked["strengths"][0] if count == 1 else asked["strengths"],
        control_guidance_start=asked["starts"], control_guidance_end=asked["ends"], **SIZE,
    ).images[0]  # fmt: skip
    options: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": 5, "guidance": guidance, "seed": 11, **SIZE}
    drawn = ours.generate(PROMPT, control=units(our_nets, asked), **options).images[0]
    alone = ours.generate(PROMPT, **options).images[0]
    assert psnr(drawn, expected) >= 45
    assert psnr(alone, expected) < 40, "control changes the picture"


@pytest.mark.slow  # as above
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_control_it_draws_what_the_plain_model_draws(family: Any, runtime: str) -> None:
    import torch

    pipeline, _, opened, _ = family
    ours = opened[runtime][0]
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"negative_prompt": NEGATIVE, **SIZE}
    expected = pipeline(
        PROMPT, num_inference_steps=4, guidance_scale=5.0, generator=[torch.Generator().manual_seed(2)], **options
    ).images[0]
    drawn = ours.generate(PROMPT, steps=4, guidance=5.0, seed=2, **options).images[0]
    assert psnr(drawn, expected) >= 45


@pytest.mark.slow
def test_each_picture_of_a_batch_follows_its_own_control(family: Any) -> None:
    ours, *nets = family[2]["onnx"]
    options: dict[str, Any] = {"steps": 3, "guidance": 5.0, **SIZE}
    images = [p.resize((48, 32)) for p in pictures()]
    both = ours.generate(PROMPT, batch=2, seed=5, control=[ControlUnit(images, nets[0])], **options).images
    for number, image in enumerate(images):
        alone = ours.generate(PROMPT, seed=5 + number, control=[ControlUnit(image, nets[0])], **options).images[0]
        assert psnr(both[number], alone) >= 45


@pytest.mark.slow
def test_a_controlnet_is_an_artifact_of_its_own(family: Any) -> None:
    from vitrify.core.artifact import Artifact

    nets, folder = family[2]["onnx"][1:], family[3]
    made = Artifact.load(folder / "net-0")
    assert made.pipeline["family"] == "controlnet"
    assert list(made.components) == ["controlnet"]
    proof = made.components["controlnet"].proof
    assert proof["graph"]["relative"] <= 1e-4
    assert proof["numeric"]["relative"] <= 1e-4
    assert proof["weights"]["tensors"] > 20
    assert nets[0].placement["controlnet"]["device"] == "cpu"
    assert Artifact.load(folder / "model").pipeline["control"] == {"residuals": len(nets[0].session.outputs)}


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))
