"""Operations of whole calls of every family: counted in the graphs, beside torch's own count of the very same call.

The models are tiny and random. The sources run on PyTorch inside torch's counter, asked what a bench asks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.calls import NEGATIVE, PROMPT, call_of
from vitrify.bench.counting import CountingSession, call_flops
from vitrify.bench.matrix import Axes, expand, task_of
from vitrify.bench.spec import Spec
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.pipelines.families.sana import INSTRUCTION
from vitrify.pipelines.load import load

pytest.importorskip("onnx", reason="needs vitrify[bench]")

Parts = dict[str, Any]


def clip(width: int, layers: int, projection: int) -> Any:
    import transformers

    return transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        projection_dim=projection, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def autoencoder(latents: int) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=latents, norm_num_groups=8, sample_size=32,
        use_quant_conv=latents == 4, use_post_quant_conv=latents == 4,
    )  # fmt: skip


def t5_words(folder: Path) -> Any:
    """A T5 tokenizer of few pieces."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(["a red apple on a table", "a blue car", "a green car, blurry and dark"] * 4, trainer)
    tokenizer.save(str(folder / "t5.json"))
    return transformers.T5TokenizerFast(tokenizer_file=str(folder / "t5.json"), extra_ids=0, model_max_length=512)


def gemma_words() -> Any:
    """A tokenizer as Gemma has it: BPE over bytes, and a token before each text."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([INSTRUCTION.lower()], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [*first, *sorted(model["vocab"], key=model["vocab"].get)]
    return transformers.GemmaTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[tuple(merge) for merge in model["merges"]],
        add_bos_token=True,
        add_eos_token=False,
    )


def sdxl(words: Callable[..., Any], folder: Path, channels: int = 4) -> Any:
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=56,
        transformer_layers_per_block=(1, 2), norm_num_groups=8, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 8 * 6,
    )  # fmt: skip
    kind = diffusers.StableDiffusionXLInpaintPipeline if channels == 9 else diffusers.StableDiffusionXLPipeline
    return kind(
        vae=autoencoder(4), text_encoder=transformers.CLIPTextModel(clip(32, 3, 32)), tokenizer=words(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip(24, 2, 16)), tokenizer_2=words("!"), unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def sd3(words: Callable[..., Any], folder: Path) -> Any:
    """3.5: without T5, with a second attention in a layer, and queries and keys that are normed."""
    import diffusers
    import transformers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=40,
        pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(16),
        text_encoder=transformers.CLIPTextModelWithProjection(clip(32, 3, 24)), tokenizer=words(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip(24, 2, 16)), tokenizer_2=words("!"),
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux(words: Callable[..., Any], folder: Path, fill: bool = False) -> Any:
    import diffusers
    import transformers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64 + 4 * (16 + 4) * fill, out_channels=64 if fill else None, num_layers=1,
        num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return (diffusers.FluxFillPipeline if fill else diffusers.FluxPipeline)(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(16), text_encoder=transformers.CLIPTextModel(clip(32, 2, 32)), tokenizer=words(),
        text_encoder_2=transformers.T5EncoderModel(t5), tokenizer_2=t5_words(folder),
    )  # fmt: skip


def sana(words: Callable[..., Any], folder: Path) -> Any:
    import diffusers
    import transformers

    tokenizer = gemma_words()
    encoder = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=24, max_position_embeddings=1024,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=8, scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate", downsample_block_type="conv",
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.5, sample_size=16,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(tokenizer, transformers.Gemma2Model(encoder), vae, transformer, scheduler)


MODELS: dict[str, Callable[..., Any]] = {
    "sdxl": sdxl,
    "sdxl inpainting": lambda *given: sdxl(*given, channels=9),
    "sd3": sd3,
    "flux": flux,
    "flux fill": lambda *given: flux(*given, fill=True),
    "sana": sana,
}


@pytest.fixture(scope="module")
def tiny(
    diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Artifact, Artifact]]:
    """tiny(name): a model's artifact, and its source, which PyTorch runs."""
    torch = pytest.importorskip("torch", reason="needs the extra export")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    pytest.importorskip("diffusers", reason="needs the extra export")
    from vitrify.export.job import export_model
    from vitrify.export.reference import reference_artifact
    from vitrify.export.source import open_source

    def words(pad: str | None = None) -> Any:
        folder = tmp_path_factory.mktemp("words") / "tokenizer"
        shutil.copytree(diffusion_source / "tokenizer", folder)
        return transformers.CLIPTokenizer.from_pretrained(folder, **({} if pad is None else {"pad_token": pad}))

    def make(name: str) -> tuple[Artifact, Artifact]:
        torch.manual_seed(3)
        folder = tmp_path_factory.mktemp("model")
        MODELS[name](words, folder).save_pretrained(folder / "source")
        made = export_model(folder / "source", folder / "artifact", verify=False)
        return made, reference_artifact(open_source(folder / "source"), made.pipeline)

    return make


def torch_flops(artifact: Artifact, spec: Spec) -> int:
    """Attention in single products, which the counter sees whatever runs them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    pipeline: Any = load(artifact, "cpu", runtime="torch")
    for session in pipeline.sessions.values():
        session._module.requires_grad_(False)  # the counter would look for gradients where there are none
    call, _ = call_of(pipeline, spec)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    pipeline.close()
    return int(counter.get_total_flops())


@pytest.mark.slow  # traces the graphs of four families
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_call_as_torch_counts_it(tiny: Callable[[str], tuple[Artifact, Artifact]], name: str) -> None:
    artifact, source = tiny(name)
    task = task_of(artifact)
    assert task == ("inpaint" if name in ("sdxl inpainting", "flux fill") else "text2img")
    spec = Spec("m", "m", task, "onnx", "fp32", batch=2, width=64, height=48, steps=2, guidance=4.0)
    ours = call_flops(artifact, spec)
    assert ours == torch_flops(source, spec)
    more = call_flops(artifact, replace(spec, steps=3))
    assert more > ours
    other = call_flops(artifact, replace(spec, guidance=1.0))
    guided = not name.startswith("flux")  # which is told its guidance, and calls once
    assert (other < ours) == guided
    # the matrix asks an inpainting model for the same
    (row,) = expand("m", "m", artifact, Axes(("onnx",), sizes=((64, 48),), steps=2)).specs
    assert (row.task, row.width, row.steps) == (task, 64, 2)


def test_a_model_that_only_changes_pictures_is_given_one(diffusion_artifact: Path) -> None:
    """The built-in model, as if it had been trained for inpainting alone, and as if it were a refiner."""
    artifact = Artifact.load(diffusion_artifact)
    spec = Spec("m", "m", "text2img", "onnx", "fp32", width=64, height=64, steps=2, guidance=1.0)
    plain = call_flops(artifact, spec)
    for tasks in (["inpaint"], ["img2img", "inpaint"]):
        changed = replace(artifact, pipeline=artifact.pipeline | {"tasks": tasks})
        assert task_of(changed) == tasks[0]
        encoder = CountingSession(artifact.components["vae_encoder"])
        encoder.run({"sample": _zeros(1, 3, 64, 64)})
        assert call_flops(changed, replace(spec, task=tasks[0])) == plain + encoder.flops
        with pytest.raises(BadInput, match=f"does {tasks[0]}, not text2img"):
            call_flops(changed, spec)
        pipeline: Any = load(changed, "cpu")
        call, parts = call_of(pipeline, replace(spec, task=tasks[0]))
        result: Any = call()
        pipeline.close()
        assert result.images[0].size == (64, 64)
        assert result.parameters[0]["prompt"] == PROMPT
        assert result.parameters[0]["negative_prompt"] == NEGATIVE
        assert parts["encode_ms"] == [(result.timings["encode"] + result.timings["encode_picture"]) * 1e3]


def test_a_controlnet_alone_is_refused(diffusion_artifact: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    net = replace(artifact, pipeline={"family": "controlnet", "tasks": ["control"]})
    with pytest.raises(UsageError, match="neither labels pictures nor draws any") as caught:
        expand("m", "m", net, Axes(("onnx",)))
    assert "Name a classifier or a diffusion pipeline" in caught.value.fix


def test_few_step_models_are_asked_for_their_own_steps(diffusion_artifact: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    (usual,) = expand("m", "m", artifact, Axes(("onnx",))).specs
    assert (usual.steps, usual.guidance) == (20, 7.5)
    few = replace(artifact, pipeline=artifact.pipeline | {"defaults": {"steps": 4, "guidance": 0.0}})
    (own,) = expand("m", "m", few, Axes(("onnx",))).specs
    assert (own.steps, own.guidance) == (4, 0.0)
    (named,) = expand("m", "m", few, Axes(("onnx",), steps=8, guidance=2.0)).specs
    assert (named.steps, named.guidance) == (8, 2.0)


def test_what_a_session_is_given_has_to_fit(diffusion_artifact: Path) -> None:
    unet = CountingSession(Artifact.load(diffusion_artifact).components["unet"])
    given = {"sample": _zeros(1, 4, 16, 16), "timestep": _zeros()}
    with pytest.raises(BadInput, match="takes encoder_hidden_states"):
        unet.run(given)
    with pytest.raises(BadInput, match="takes encoder_hidden_states"):
        unet.run({**given, "encoder_hidden_states": _zeros(2, 77, 8)})


def _zeros(*shape: int) -> Any:
    import numpy as np

    return np.zeros(shape, np.float32)
