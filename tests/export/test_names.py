"""Whatever layout a file is in: the bytes that `bind` finds are those that `from_pretrained` loads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[export]")
diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")

from safetensors.torch import load_file, save_file  # noqa: E402

from vitrify.core.errors import BadInput  # noqa: E402
from vitrify.core.safetensors_header import open_checkpoint  # noqa: E402
from vitrify.export.binding import Bindings, bind, load_tensor  # noqa: E402
from vitrify.export.names import bind_module, plain_names, transformers_names  # noqa: E402

NEW = int(transformers.__version__.split(".")[0]) >= 5
needs_5 = pytest.mark.skipif(not NEW, reason="needs transformers 5: version 4 does not convert weights")


def vit() -> Any:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, num_labels=7,
        )
    )  # fmt: skip


def deit() -> Any:
    return transformers.DeiTForImageClassification(
        transformers.DeiTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
        )
    )


def swin() -> Any:
    return transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
        )
    )


def convnext() -> Any:
    return transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, image_size=16)
    )


def resnet() -> Any:  # BatchNorm: num_batches_tracked and running means
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    )


def clip_text() -> Any:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )


def clip_text_projection() -> Any:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )


def t5() -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=False
        )
    )


def vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


Build = Callable[[], Any]
ALL = [vit, deit, swin, convnext, resnet, clip_text, clip_text_projection, t5, vae, unet]


def saved(build: Build, folder: Path, **options: Any) -> Any:
    """A model with random weights (no two tensors alike), saved as its library saves it today."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
    model.save_pretrained(folder, **options)
    return model


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a folder's one safetensors file."""
    (path,) = folder.glob("*.safetensors")
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def on_meta(model: Any) -> Any:
    with torch.device("meta"):
        if hasattr(model, "base_model_prefix"):
            return type(model)(model.config)
        return type(model).from_config(model.config)


def check(model: Any, folder: Path) -> Bindings:
    """Bind the folder to a module on meta; every tensor must equal what the library loads from the folder."""
    bindings = bind_module(on_meta(model), open_checkpoint(folder))
    loaded = type(model).from_pretrained(folder).state_dict()
    assert set(loaded) == bindings.linked.keys() | bindings.transforms.keys() | bindings.computed
    for name, entry in bindings.linked.items():
        tensor = load_tensor(entry)
        assert torch.equal(tensor.reshape(loaded[name].shape), loaded[name]), name
    for name, transform in bindings.transforms.items():
        assert torch.equal(transform.compute(), loaded[name]), name
        assert transform.shape == tuple(loaded[name].shape)
    return bindings


@pytest.mark.parametrize("build", ALL)
def test_as_saved_today(build: Build, tmp_path: Path) -> None:
    bindings = check(saved(build, tmp_path), tmp_path)
    assert not bindings.transforms
    assert not bindings.computed


@pytest.mark.parametrize("build", [vit, clip_text, t5, unet, vae])
def test_sharded(build: Build, tmp_path: Path) -> None:
    model = saved(build, tmp_path, max_shard_size=6000)
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    bindings = check(model, tmp_path)
    assert len({entry.file for entry in bindings.linked.values()}) > 1


def test_vit_as_on_the_hub(tmp_path: Path) -> None:
    model = saved(vit, tmp_path)
    bindings = check(model, tmp_path)
    names = {entry.name for entry in bindings.linked.values()}
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    if NEW:
        entry = bindings.linked["vit.layers.0.attention.q_proj.weight"]
        assert entry.name == "vit.encoder.layer.0.attention.attention.query.weight"


@needs_5
@pytest.mark.parametrize("build", [vit, deit, clip_text])
def test_a_file_with_the_module_names(build: Build, tmp_path: Path) -> None:
    model = saved(build, tmp_path)
    rewrite(tmp_path, lambda _: dict(model.state_dict()))
    check(model, tmp_path)


@pytest.mark.parametrize("build", [clip_text, clip_text_projection])
def test_clip_as_on_the_hub(build: Build, tmp_path: Path) -> None:
    model = saved(build, tmp_path)

    def old(tensors: dict[str, Any]) -> dict[str, Any]:
        head = ("text_model.", "text_projection.")
        moved = {name if name.startswith(head) else f"text_model.{name}": t for name, t in tensors.items()}
        return {**moved, "text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}

    rewrite(tmp_path, old)
    bindings = check(model, tmp_path)
    assert bindings.ignored == {"text_model.embeddings.position_ids"}
    assert all(entry.name.startswith(("text_model.", "text_projection.")) for entry in bindings.linked.values())


def test_swin_as_on_the_hub(tmp_path: Path) -> None:
    model = saved(swin, tmp_path)
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.zeros(4, 4, dtype=torch.int64)})
    bindings = check(model, tmp_path)
    assert (name in bindings.ignored) == NEW


def test_layer_norm_gamma_and_beta(tmp_path: Path) -> None:
    build = lambda: transformers.BertModel(  # noqa: E731
        transformers.BertConfig(
            vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    model = saved(build, tmp_path)
    pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))

    def old(tensors: dict[str, Any]) -> dict[str, Any]:
        for new, name in pairs:
            tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
        return tensors

    rewrite(tmp_path, old)
    assert any(entry.name.endswith("LayerNorm.gamma") for entry in check(model, tmp_path).linked.values())


def test_batch_norm_without_its_counter(tmp_path: Path) -> None:
    model = saved(resnet, tmp_path)
    rewrite(tmp_path, lambda ts: {name: t for name, t in ts.items() if not name.endswith("num_batches_tracked")})
    bindings = bind_module(on_meta(model), open_checkpoint(tmp_path))
    assert bindings.computed
    assert all(name.endswith("num_batches_tracked") for name in bindings.computed)


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_attention(tensors: dict[str, Any], *, as_convolution: bool) -> dict[str, Any]:
    moved = {}
    for name, tensor in tensors.items():
        old = name
        for new_part, old_part in OLD_ATTENTION.items():
            old = re.sub(rf"attentions\.(\d+)\.{re.escape(new_part)}\.", rf"attentions.\1.{old_part}.", old)
        moved[old] = tensor[:, :, None, None] if as_convolution and old != name and tensor.ndim == 2 else tensor
    return moved


def test_vae_with_old_attention_names(tmp_path: Path) -> None:
    model = saved(vae, tmp_path)
    rewrite(tmp_path, lambda tensors: old_attention(tensors, as_convolution=False))
    bindings = check(model, tmp_path)
    assert bindings.linked["encoder.mid_block.attentions.0.to_out.0.bias"].name.endswith("proj_attn.bias")


def test_vae_with_attention_weights_as_convolutions(tmp_path: Path) -> None:
    # diffusers itself refuses these shapes; the bytes are the same as the flat ones'.
    model = saved(vae, tmp_path)
    rewrite(tmp_path, lambda tensors: old_attention(tensors, as_convolution=True))
    bindings = bind_module(on_meta(model), open_checkpoint(tmp_path))
    target = "decoder.mid_block.attentions.0.to_q.weight"
    entry = bindings.linked[target]
    assert entry.shape == (8, 8, 1, 1)
    assert torch.equal(load_tensor(entry).flatten(), model.state_dict()[target].flatten())


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_tied_embeddings(kept: str, tmp_path: Path) -> None:
    model = saved(t5, tmp_path)
    table = model.state_dict()["shared.weight"]
    ties = ("shared.weight", "encoder.embed_tokens.weight")
    rewrite(tmp_path, lambda ts: {**{n: t for n, t in ts.items() if n not in ties}, kept: table})
    bindings = check(model, tmp_path) if NEW else bind_module(on_meta(model), open_checkpoint(tmp_path))
    assert {bindings.linked[name].name for name in ties} == {kept}


def test_tied_embeddings_that_differ(tmp_path: Path) -> None:
    model = saved(t5, tmp_path)
    table = model.state_dict()["shared.weight"]
    rewrite(tmp_path, lambda ts: {**ts, "shared.weight": table, "encoder.embed_tokens.weight": table + 1})
    with pytest.raises(BadInput, match=r"ties 'shared\.weight' and 'encoder\.embed_tokens\.weight'.*differ"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))


def dinov2_swiglu() -> Any:
    return transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, use_swiglu_ffn=True
        )
    )


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=3, tie_word_embeddings=False,
        )
    )  # fmt: skip


@needs_5
@pytest.mark.parametrize(("build", "sources"), [(dinov2_swiglu, 1), (mixtral, 6)])
def test_what_is_more_than_a_rename_is_computed(build: Build, sources: int, tmp_path: Path) -> None:
    bindings = check(saved(build, tmp_path), tmp_path)  # chunks; stacks and concatenates
    assert bindings.transforms
    assert max(len(transform.sources) for transform in bindings.transforms.values()) == sources


def test_a_head_that_is_missing(tmp_path: Path) -> None:
    model = saved(vit, tmp_path)
    rewrite(tmp_path, lambda ts: {name: t for name, t in ts.items() if not name.startswith("classifier")})
    with pytest.raises(BadInput, match=r"lacks 'classifier\.weight', 'classifier\.bias'.*never made up"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))


@pytest.mark.parametrize("build", [vit, unet])
def test_a_tensor_without_an_owner(build: Build, tmp_path: Path) -> None:
    model = saved(build, tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, "extra.weight": torch.ones(1)})
    with pytest.raises(BadInput, match=r"model\.safetensors holds 'extra\.weight', which the model does not have"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))


def test_another_architecture(tmp_path: Path) -> None:
    saved(convnext, tmp_path)
    with pytest.raises(BadInput, match=r"lacks .* and \d+ more.* and holds .* and \d+ more"):
        bind_module(on_meta(vit()), open_checkpoint(tmp_path))


def test_a_shape_that_does_not_fit(tmp_path: Path) -> None:
    model = saved(vit, tmp_path)
    rewrite(tmp_path, lambda ts: {**ts, "classifier.weight": torch.ones(5, 16)})
    with pytest.raises(BadInput, match=r"'classifier\.weight' of the model has the shape \[7, 16\], .* has \[5, 16\]"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))
    # As many elements, another order: not the same bytes.
    rewrite(tmp_path, lambda ts: {**ts, "classifier.weight": torch.ones(16, 7)})
    with pytest.raises(BadInput, match=r"has \[16, 7\]"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))


@needs_5
def test_two_sources_for_one_parameter(tmp_path: Path) -> None:
    model = saved(vit, tmp_path)
    name = "vit.layers.0.attention.q_proj.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.ones(16, 16)})
    with pytest.raises(BadInput, match=rf"Both .*are the model's '{re.escape(name)}'"):
        bind_module(on_meta(model), open_checkpoint(tmp_path))


def test_a_base_model_file_for_a_head(tmp_path: Path) -> None:
    # The prefix comes with the head: `encoder.layer...` is `vit.encoder.layer...`; the head itself is missing.
    saved(lambda: transformers.ViTModel(vit().config, add_pooling_layer=False), tmp_path)
    with pytest.raises(BadInput, match=r"safetensors lacks 'classifier\.weight', 'classifier\.bias', which"):
        bind_module(vit(), open_checkpoint(tmp_path))


def test_a_plain_module(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    bindings = bind_module(module, checkpoint)
    assert set(bindings.linked) == set(module.state_dict())
    assert bind({"0.weight": (2, 3)}, {"0.weight": checkpoint["0.weight"]}, plain_names(module)).linked


def test_a_scalar_and_an_empty_tensor_load(tmp_path: Path) -> None:
    save_file(
        {"s": torch.tensor(3.0), "e": torch.zeros(0, 2), "b": torch.ones(2).bfloat16()}, tmp_path / "m.safetensors"
    )
    checkpoint = open_checkpoint(tmp_path, ("m",))
    assert load_tensor(checkpoint["s"]) == 3
    assert load_tensor(checkpoint["e"]).shape == (0, 2)
    assert load_tensor(checkpoint["b"]).dtype == torch.bfloat16


def test_mapping_is_a_function_of_names_alone(tmp_path: Path) -> None:
    model = saved(vit, tmp_path)
    names = list(open_checkpoint(tmp_path))
    rename = transformers_names(on_meta(model))
    assert rename(names) == rename(list(reversed(names)))
    assert set(rename(names).names.values()) == set(model.state_dict())
    assert json.dumps(dict(rename(names).names))
