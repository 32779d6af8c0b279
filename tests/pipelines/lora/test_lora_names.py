"""LoRAs with the names of the models' original code, held against diffusers' own conversion of whole checkpoints.

A checkpoint in the original layout has, in each weight, numbers that occur once. Converted by diffusers it says where
each of them belongs; the same LoRA laid on the original and on ours must then give the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.core.artifact import Component, WeightFile
from vitrify.core.errors import BadInput, UsageError
from vitrify.core.tensors import DType, TensorSpec
from vitrify.pipelines.lora import LoraUse, lora_overrides, read_lora

torch = pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("diffusers", reason="needs the extra export")

from diffusers.loaders import single_file_utils  # noqa: E402

Weights = dict[str, np.ndarray]


def component(name: str, weights: Mapping[str, np.ndarray], root: Path, width: int = 8) -> Component:
    """A component with these weights: what is read of it is a file's header and bytes."""
    (root / name).mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), root / name / "model.safetensors")
    file = WeightFile(f"{name}/model.safetensors", (root / name / "model.safetensors").stat().st_size)
    inputs = {"encoder_hidden_states": TensorSpec(DType.FLOAT32, ("batch", "tokens", width))}
    return Component(name, "torch", f"{name}/config.json", inputs, {}, (file,), root=root)


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def check(
    original: Weights,
    convert: Callable[[Weights], Weights],
    name: str,
    tmp_path: Path,
    prefix: str = "lora_unet_",
    spell: Callable[[str], str] = lambda n: n.replace(".", "_"),
) -> None:
    """A LoRA of every matrix of `original`, laid on the converted weights, equals the converted sum."""
    rng, tensors, changed = np.random.default_rng(1), {}, dict(original)
    for key, weight in original.items():
        if weight.ndim < 2 or not key.endswith(".weight"):
            continue
        down = rng.standard_normal((2, *weight.shape[1:])).astype(np.float32)
        up = rng.standard_normal((len(weight), 2, *(1 for _ in weight.shape[2:]))).astype(np.float32)
        layer = prefix + spell(key.removesuffix(".weight"))
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        changed[key] = weight + (up.reshape(-1, 2) @ down.reshape(2, -1)).reshape(weight.shape)
    save_file(tensors, tmp_path / "lora.safetensors")
    ours, wanted = convert(original), convert(changed)
    given = lora_overrides(
        {name: component(name, ours, tmp_path)}, [LoraUse(read_lora(tmp_path / "lora.safetensors"))]
    )[name]
    moved = {n for n in ours if not np.array_equal(ours[n], wanted[n])}
    assert set(given) == moved
    assert len(moved) >= len(tensors) // 2
    for key in moved:
        np.testing.assert_allclose(given[key], wanted[key], atol=1e-5)


def converted(function: Callable[..., Mapping[str, Any]], *rest: Any) -> Callable[[Weights], Weights]:
    """diffusers' conversion of a checkpoint, in arrays; it takes tensors out of what it is given."""

    def convert(weights: Weights) -> Weights:
        made = function({n: torch.from_numpy(w) for n, w in weights.items()}, *rest)
        return {n: t.contiguous().numpy() for n, t in made.items()}

    return convert


def resnet(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.in_layers.0.weight": (inner,), f"{name}.in_layers.0.bias": (inner,),
        f"{name}.in_layers.2.weight": (outer, inner, 3, 3), f"{name}.in_layers.2.bias": (outer,),
        f"{name}.emb_layers.1.weight": (outer, 16), f"{name}.emb_layers.1.bias": (outer,),
        f"{name}.out_layers.0.weight": (outer,), f"{name}.out_layers.0.bias": (outer,),
        f"{name}.out_layers.3.weight": (outer, outer, 3, 3), f"{name}.out_layers.3.bias": (outer,),
    }  # fmt: skip
    if inner != outer:
        shapes |= {f"{name}.skip_connection.weight": (outer, inner, 1, 1), f"{name}.skip_connection.bias": (outer,)}
    return shapes


def attention(name: str, size: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.norm.weight": (size,), f"{name}.norm.bias": (size,)}
    shapes |= {f"{name}.proj_{end}.weight": (size, size) for end in ("in", "out")}
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attn, width in (("attn1", size), ("attn2", 8)):
            shapes |= {f"{block}.{attn}.to_{x}.weight": (size, width if x in "kv" else size) for x in ("q", "k", "v")}
            shapes[f"{block}.{attn}.to_out.0.weight"] = (size, size)
        shapes[f"{block}.ff.net.0.proj.weight"] = (8 * size, size)
        shapes[f"{block}.ff.net.2.weight"] = (size, 4 * size)
    return shapes


def unet_shapes(depths: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """A UNet in its own code's layout, with 4, 8 and 16 channels and attention of these depths; SDXL's embeddings."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_blocks.0.0.weight": (4, 4, 3, 3), "input_blocks.0.0.bias": (4,),
        "out.0.weight": (4,), "out.0.bias": (4,), "out.2.weight": (4, 4, 3, 3), "out.2.bias": (4,),
        "time_embed.0.weight": (16, 4), "time_embed.0.bias": (16,),
        "time_embed.2.weight": (16, 16), "time_embed.2.bias": (16,), "label_emb.0.0.weight": (16, 12),
        "label_emb.0.0.bias": (16,), "label_emb.0.2.weight": (16, 16), "label_emb.0.2.bias": (16,),
    }  # fmt: skip
    sizes, number, before = (4, 8, 16), 1, 4
    for level, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
        for _ in range(2):
            shapes |= resnet(f"input_blocks.{number}.0", before, size)
            shapes |= attention(f"input_blocks.{number}.1", size, depth) if depth else {}
            number, before = number + 1, size
        if level < 2:
            shapes |= {
                f"input_blocks.{number}.0.op.weight": (size, size, 3, 3),
                f"input_blocks.{number}.0.op.bias": (size,),
            }
            number += 1
    shapes |= (
        resnet("middle_block.0", 16, 16)
        | attention("middle_block.1", 16, max(depths))
        | resnet("middle_block.2", 16, 16)
    )
    number = 0
    for level, (size, depth) in reversed(list(enumerate(zip(sizes, depths, strict=True)))):
        for i in range(3):
            shapes |= resnet(f"output_blocks.{number}.0", 3 * size, size)
            shapes |= attention(f"output_blocks.{number}.1", size, depth) if depth else {}
            if i == 2 and level:
                place = f"output_blocks.{number}.{2 if depth else 1}.conv"
                shapes |= {f"{place}.weight": (size, size, 3, 3), f"{place}.bias": (size,)}
            number += 1
    return shapes


def ldm_unet(weights: Weights) -> Weights:
    config = {"layers_per_block": 2, "addition_embed_type": "text_time", "class_embed_type": None}
    whole = {f"model.diffusion_model.{n}": w for n, w in weights.items()}
    return converted(single_file_utils.convert_ldm_unet_checkpoint, config)(whole)


@pytest.mark.parametrize(
    ("prefix", "spell"),
    [("lora_unet_", lambda n: n.replace(".", "_")), ("diffusion_model.", lambda n: n)],
    ids=["kohya", "comfyui"],
)
@pytest.mark.parametrize("depths", [(0, 2, 3), (1, 1, 0)], ids=["as in XL", "as in 1.x"])
def test_stable_diffusions_unet(
    tmp_path: Path, depths: tuple[int, int, int], prefix: str, spell: Callable[[str], str]
) -> None:
    check(numbered(unet_shapes(depths)), ldm_unet, "unet", tmp_path, prefix, spell)


def flux_shapes() -> dict[str, tuple[int, ...]]:
    """Flux' transformer in its own code's layout: two blocks of each kind, as narrow as the conversion allows."""
    linears = {
        "img_in": (6, 4), "txt_in": (6, 5), "time_in.in_layer": (6, 3), "time_in.out_layer": (6, 6),
        "vector_in.in_layer": (6, 3), "vector_in.out_layer": (6, 6), "guidance_in.in_layer": (6, 3),
        "guidance_in.out_layer": (6, 6), "final_layer.linear": (4, 6), "final_layer.adaLN_modulation.1": (12, 6),
    }  # fmt: skip
    for i in range(2):
        for side in ("img", "txt"):
            linears |= {
                f"double_blocks.{i}.{side}_attn.qkv": (18, 6), f"double_blocks.{i}.{side}_attn.proj": (6, 6),
                f"double_blocks.{i}.{side}_mlp.0": (24, 6), f"double_blocks.{i}.{side}_mlp.2": (6, 24),
                f"double_blocks.{i}.{side}_mod.lin": (36, 6),
            }  # fmt: skip
        linears |= {
            # the conversion has Flux' own width in it
            f"single_blocks.{i}.linear1": (3 * 3072 + 12288, 6), f"single_blocks.{i}.linear2": (6, 30),
            f"single_blocks.{i}.modulation.lin": (18, 6),
        }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for i in range(2):
        for x in ("query", "key"):
            shapes[f"single_blocks.{i}.norm.{x}_norm.scale"] = (2,)
            shapes |= {f"double_blocks.{i}.{side}_attn.norm.{x}_norm.scale": (2,) for side in ("img", "txt")}
    return shapes


@pytest.mark.parametrize(
    ("prefix", "spell"),
    [("lora_unet_", lambda n: n.replace(".", "_")), ("diffusion_model.", lambda n: n)],
    ids=["kohya", "comfyui"],
)
def test_flux_transformer(tmp_path: Path, prefix: str, spell: Callable[[str], str]) -> None:
    convert = converted(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    check(numbered(flux_shapes()), convert, "transformer", tmp_path, prefix, spell)


def sd3_shapes() -> dict[str, tuple[int, ...]]:
    """Stable Diffusion 3.5's transformer in its own code's layout: block 0 attends twice, the last one drops text."""
    linears = {
        "t_embedder.mlp.0": (6, 3), "t_embedder.mlp.2": (6, 6), "y_embedder.mlp.0": (6, 3), "y_embedder.mlp.2": (6, 6),
        "context_embedder": (6, 5), "final_layer.linear": (8, 6), "final_layer.adaLN_modulation.1": (12, 6),
    }  # fmt: skip
    for i in range(2):
        for side in ("x_block", "context_block"):
            block, last = f"joint_blocks.{i}.{side}", i == 1 and side == "context_block"
            linears |= {f"{block}.attn.qkv": (18, 6), f"{block}.adaLN_modulation.1": (12 if last else 36, 6)}
            if not last:
                linears |= {f"{block}.attn.proj": (6, 6), f"{block}.mlp.fc1": (24, 6), f"{block}.mlp.fc2": (6, 24)}
    linears |= {"joint_blocks.0.x_block.attn2.qkv": (18, 6), "joint_blocks.0.x_block.attn2.proj": (6, 6)}
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 4, 6),
        "x_embedder.proj.weight": (6, 4, 2, 2),
        "x_embedder.proj.bias": (6,),
    }
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


def test_stable_diffusion_3s_transformer(tmp_path: Path) -> None:
    convert = converted(single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers)
    check(numbered(sd3_shapes()), convert, "transformer", tmp_path)


@pytest.mark.parametrize("ours", ["", "text_model."], ids=["transformers 5", "transformers 4"])
@pytest.mark.parametrize(
    "prefix", ["lora_te_text_model_", "lora_te1_text_model_", "text_encoder.text_model.", "text_encoder.",
               "text_encoders.clip_l.transformer.text_model."],
)  # fmt: skip
def test_clip_with_and_without_its_prefix(tmp_path: Path, ours: str, prefix: str) -> None:
    layer = "encoder.layers.0.self_attn.q_proj"
    spelled = layer if prefix.endswith(".") else layer.replace(".", "_")
    down, up = np.ones((1, 4), np.float32), np.ones((4, 1), np.float32)
    save_file(
        {f"{prefix}{spelled}.lora_down.weight": down, f"{prefix}{spelled}.lora_up.weight": up},
        tmp_path / "l.safetensors",
    )
    weights = {f"{ours}{layer}.weight": np.zeros((4, 4), np.float32)}
    given = lora_overrides(
        {"text_encoder": component("text_encoder", weights, tmp_path)}, [LoraUse(read_lora(tmp_path / "l.safetensors"))]
    )
    np.testing.assert_array_equal(given["text_encoder"][f"{ours}{layer}.weight"], np.ones((4, 4)))


@pytest.mark.parametrize(("prefix", "owner"), [("lora_te2_", "text_encoder_2"), ("lora_te3_", "text_encoder_3")])
def test_each_encoder_gets_its_own(tmp_path: Path, prefix: str, owner: str) -> None:
    weights = {"encoder.block.0.layer.0.q.weight": np.zeros((4, 4), np.float32)}
    layer = f"{prefix}encoder_block_0_layer_0_q"
    tensors = {
        f"{layer}.lora_down.weight": np.ones((1, 4), np.float32),
        f"{layer}.lora_up.weight": np.ones((4, 1), np.float32),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    lora = read_lora(tmp_path / "l.safetensors")
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    components = {name: component(name, weights, tmp_path) for name in names}
    assert list(lora_overrides(components, [LoraUse(lora)])) == [owner]
    if owner == "text_encoder_3":  # Flux' T5 is its second
        del components["text_encoder_3"]
        assert list(lora_overrides(components, [LoraUse(lora)])) == ["text_encoder_2"]


# LoRAs for other models ----------------------------------------------------------------------------------------------


def lora(tmp_path: Path, layers: Mapping[str, tuple[int, int]]) -> LoraUse:
    tensors = {}
    for layer, (outputs, inputs) in layers.items():
        tensors[f"{layer}.lora_down.weight"] = np.ones((1, inputs), np.float32)
        tensors[f"{layer}.lora_up.weight"] = np.ones((outputs, 1), np.float32)
    save_file(tensors, tmp_path / "foreign.safetensors")
    return LoraUse(read_lora(tmp_path / "foreign.safetensors"))


TEXT = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
OTHERS = [
    ({f"lora_unet_{TEXT}": (320, 768)}, "Stable Diffusion 1.x"),
    ({f"lora_unet_{TEXT}": (320, 1024)}, "Stable Diffusion 2.x"),
    ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048)}, "Stable Diffusion XL"),
    ({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, "Flux"),
    ({"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}, "Flux"),
    ({"transformer.transformer_blocks.0.attn.add_q_proj": (1536, 1536)}, "Stable Diffusion 3"),
    ({"lora_unet_joint_blocks_0_x_block_attn_qkv": (4608, 1536)}, "Stable Diffusion 3"),
    ({"transformer.transformer_blocks.0.attn2.to_q": (2240, 2240)}, "Sana"),
    ({"lora_te_text_model_encoder_layers_0_mlp_fc3": (8, 8)}, "a text encoder alone"),
]


@pytest.mark.parametrize(("layers", "made"), OTHERS, ids=[f"{made} {i}" for i, (_, made) in enumerate(OTHERS)])
def test_a_lora_for_another_model_says_which(tmp_path: Path, layers: dict[str, Any], made: str) -> None:
    weights = {
        "conv_in.weight": np.zeros((4, 4, 3, 3), np.float32),
        "up_blocks.1.x.weight": np.zeros((4, 4), np.float32),
    }
    components = {"unet": component("unet", weights, tmp_path, width=768)}
    with pytest.raises(BadInput) as caught:
        lora_overrides(components, [lora(tmp_path, layers)])
    assert (
        f"The LoRA foreign has 1 layers, of which this model has none; it lacks {next(iter(layers))}."
        in caught.value.what
    )
    assert f"It looks made for {made}; this model is Stable Diffusion 1.x." in caught.value.what


def test_a_lora_that_fits_in_part_is_refused(tmp_path: Path) -> None:
    weights = {"mid_block.attentions.0.proj_in.weight": np.zeros((4, 4), np.float32)}
    components = {"unet": component("unet", weights, tmp_path, width=2048)}
    foreign = {f"lora_unet_mid_block_attentions_{i}_proj_in": (4, 4) for i in range(6)}
    with pytest.raises(BadInput) as caught:
        lora_overrides(components, [lora(tmp_path, foreign)])
    said = "has 6 layers, of which this model has 1; it lacks lora_unet_mid_block_attentions_1_proj_in, "
    assert said in caught.value.what
    assert (
        "attentions_3_proj_in and 2 more. It looks made for a UNet; this model is Stable Diffusion XL."
        in caught.value.what
    )


def test_a_wrong_shape_says_both(tmp_path: Path) -> None:
    name = TEXT.replace(
        "down_blocks_0_attentions_0_transformer_blocks_0_attn2_",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.",
    )
    components = {
        "unet": component("unet", {f"{name}.weight": np.zeros((320, 1024), np.float32)}, tmp_path, width=1024)
    }
    with pytest.raises(BadInput) as caught:
        lora_overrides(components, [lora(tmp_path, {f"lora_unet_{TEXT}": (320, 768)})])
    assert (
        f"changes lora_unet_{TEXT}, a weight of shape [320, 768]; unet has {name}.weight [320, 1024]."
        in caught.value.what
    )
    assert "It looks made for Stable Diffusion 1.x; this model is Stable Diffusion 2.x." in caught.value.what


def test_a_fused_layer_of_other_parts_is_refused(tmp_path: Path) -> None:
    weights = {f"transformer_blocks.0.attn.to_{x}.weight": np.zeros((6, 6), np.float32) for x in "qkv"}
    weights["single_transformer_blocks.0.attn.to_q.weight"] = np.zeros((6, 6), np.float32)
    components = {"transformer": component("transformer", weights, tmp_path)}
    with pytest.raises(
        BadInput, match=r"weight of shape \[12, 6\]; transformer has .*to_q\.weight \[6, 6\] and .*to_v"
    ):
        lora_overrides(components, [lora(tmp_path, {"lora_unet_double_blocks_0_img_attn_qkv": (12, 6)})])


def test_a_plan_is_refused(tmp_path: Path) -> None:
    plan = Component("unet", "tensorrt-rtx", "unet/model.plan", {}, {}, root=tmp_path)
    with pytest.raises(UsageError, match="unet is a plan of tensorrt-rtx, whose weights cannot be changed"):
        lora_overrides({"unet": plan}, [lora(tmp_path, {f"lora_unet_{TEXT}": (320, 768)})])


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(tmp_path: Path, strength: float) -> None:
    weights = {"conv_in.weight": np.zeros((4, 4), np.float32)}
    use = lora(tmp_path, {"lora_unet_conv_in": (4, 4)})
    with pytest.raises(BadInput, match=f"The strength of foreign is {strength}"):
        lora_overrides({"unet": component("unet", weights, tmp_path)}, [LoraUse(use.lora, strength)])
    assert lora_overrides({"unet": component("unet", weights, tmp_path)}, [LoraUse(use.lora, 0.0)]) == {}


def test_a_convolution_of_one_pixel_may_be_a_linear_layer(tmp_path: Path) -> None:
    weights = {"proj_in.weight": np.zeros((4, 6, 1, 1), np.float32)}
    given = lora_overrides(
        {"unet": component("unet", weights, tmp_path)}, [lora(tmp_path, {"lora_unet_proj_in": (4, 6)})]
    )
    np.testing.assert_array_equal(given["unet"]["proj_in.weight"], np.ones((4, 6, 1, 1)))
