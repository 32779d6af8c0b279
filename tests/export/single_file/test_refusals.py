"""What is no single checkpoint that can be exported, and what is said of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.core.errors import BadInput
from vitrify.export.job import find_source


def made(path: Path, *names: str) -> str:
    save_file({name: np.zeros((4, 4), np.float16) for name in names}, path)
    return str(path)


@pytest.mark.parametrize(
    ("names", "what", "fix"),
    [
        (("lora_unet_mid_block_attentions_0.lora_up.weight", "lora_unet_x.alpha"), "is a LoRA", "--lora"),
        (("unet.mid_block.attentions.0.to_q.lora_A.weight",), "is a LoRA", "--lora"),
        (("transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight",), "is a LoRA", "--lora"),
        (("lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",), "is a LoRA", "--lora"),
        (("decoder.conv_in.weight", "encoder.conv_in.weight"), "nothing but an autoencoder", "--config FOLDER"),
        (("first_stage_model.decoder.conv_in.weight",), "nothing but an autoencoder", "--config FOLDER"),
        (("text_model.embeddings.token_embedding.weight",), "nothing but a CLIP text encoder", "--config FOLDER"),
        (("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"), "a T5 text encoder", "--config FOLDER"),
        (("down_blocks.0.resnets.0.norm1.weight", "conv_in.weight"), "a UNet in diffusers' layout", "folder"),
        (("transformer_blocks.0.attn.to_q.weight",), "a transformer in diffusers' layout", "model_index.json"),
        (("control_model.input_blocks.0.0.weight",), "is a ControlNet", "diffusers folder"),
        (("emb_params",), "a textual inversion", "Known are"),
        (("distilled_guidance_layer.in_proj.bias", "double_blocks.0.img_attn.qkv.weight"), "Chroma", "Known are"),
        (("model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight",), "a quantized checkpoint", "compile"),
        (("bert.embeddings.weight", "b", "c", "d"), "none of the layouts that are known", "Stable Diffusion XL"),
    ],
)
def test_what_it_is_instead_is_named(names: tuple[str, ...], what: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        find_source(made(tmp_path / "file.safetensors", *names))
    assert fix in caught.value.fix


def test_an_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        find_source(made(tmp_path / "file.safetensors", "a", "b", "c", "d"))
    what = caught.value.what
    for name in ("input_blocks.0.0.weight", "joint_blocks.0.x_block.attn.qkv.weight", "UNet2DConditionModel"):
        assert name in what
    assert "It holds a, b, c, ..." in what


def test_a_pickle_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": {}}, protocol=4) + b" " * 100)
    with pytest.raises(BadInput, match="is a pickle checkpoint") as caught:
        find_source(str(path))
    assert "safetensors" in caught.value.fix


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = Path(made(tmp_path / "model.safetensors", "model.diffusion_model.input_blocks.0.0.weight"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadInput, match="truncated: 5 bytes are missing"):
        find_source(str(path))


def test_the_folder_of_configs_must_be_a_models(tmp_path: Path) -> None:
    path = made(tmp_path / "model.safetensors", "model.diffusion_model.input_blocks.0.0.weight")
    for config, what in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no model_index.json")):
        with pytest.raises(BadInput, match=what):
            find_source(path, config=str(config))


def test_a_part_that_is_nowhere_is_named(sd: Callable[..., Any], layouts: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    _, _, file = sd(1)
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("first_stage_model.")}
    path = layouts.save(tensors, tmp_path / "no-vae.safetensors")
    with pytest.raises(BadInput, match=r"without its vae \(AutoencoderKL; looked for first_stage_model\.") as caught:
        find_source(str(path))
    assert "--config FOLDER" in caught.value.fix


@pytest.mark.slow
def test_a_tensor_that_is_missing_or_too_much_is_named(sd: Callable[..., Any], layouts: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from vitrify.export.job import export_model

    _, folder, file = sd(1)
    tensors = load_file(file)
    more = layouts.save(
        tensors | {"model.diffusion_model.surprise.weight": tensors["betas"]}, tmp_path / "more.safetensors"
    )
    with pytest.raises(BadInput, match=r"holds 'surprise\.weight', which the model does not have"):
        export_model(more, tmp_path / "out", config=folder)
    del tensors["model.diffusion_model.out.2.bias"]
    less = layouts.save(tensors, tmp_path / "less.safetensors")
    with pytest.raises(BadInput, match=r"lacks 'conv_out\.bias'"):
        export_model(less, tmp_path / "out", config=folder)
    assert not (tmp_path / "out").exists()


def test_configs_of_another_family_are_refused(sd: Callable[..., Any], layouts: Any, tmp_path: Path) -> None:
    import json
    import shutil

    _, folder, file = sd(1)
    other = shutil.copytree(folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="is a Stable Diffusion 1 checkpoint, and --config names a FluxPipeline"):
        find_source(str(file), config=str(other))
