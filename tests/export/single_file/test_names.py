"""Original names at the real sizes: what diffusers' own converters make of them, and configs that fit every shape."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

from diffusers.loaders import single_file_utils as library  # noqa: E402

from vitrify.core.safetensors_header import TensorEntry, read_header  # noqa: E402
from vitrify.export.binding import load_tensor  # noqa: E402
from vitrify.export.job import find_source  # noqa: E402
from vitrify.export.layout import write_layout  # noqa: E402
from vitrify.export.names import bind_module  # noqa: E402
from vitrify.export.single_file import text, transformer  # noqa: E402
from vitrify.export.single_file.detect import layout_of  # noqa: E402
from vitrify.export.single_file.origins import placed, write_copies  # noqa: E402
from vitrify.export.single_file.unet import unet_origins  # noqa: E402
from vitrify.export.single_file.vae import vae_origins  # noqa: E402
from vitrify.pipelines.prompt import PromptTokenizer  # noqa: E402

Tensors = dict[str, Any]
CROSS, DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D")
CROSS_UP = "CrossAttnUpBlock2D"

# the configs of the models that each family was published with
UNETS = {
    "Stable Diffusion 1": {
        "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
    },
    "Stable Diffusion 2": {
        "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": (320, 640, 1280, 1280), "use_linear_projection": True,
    },
    "Stable Diffusion XL": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "block_out_channels": (320, 640, 1280), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": [1, 2, 10], "down_block_types": (DOWN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, UP),
    },
    "Stable Diffusion XL's refiner": {
        "sample_size": 128, "cross_attention_dim": 1280, "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": (384, 768, 1536, 1536), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560, "transformer_layers_per_block": 4,
        "down_block_types": (DOWN, CROSS, CROSS, DOWN), "up_block_types": (UP, CROSS_UP, CROSS_UP, UP),
    },
}  # fmt: skip
SD3 = {
    "3.0 medium": {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    "3.5 medium": {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
    },
    "3.5 large": {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
    },
}  # fmt: skip
SD3_ALL = {"sample_size": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
           "in_channels": 16, "out_channels": 16, "patch_size": 2, "attention_head_dim": 64}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "projection_dim": 768}  # fmt: skip
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
          "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "projection_dim": 1280, "hidden_act": "gelu"}  # fmt: skip


def hollow(make: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a module's state dict."""
    with torch.device("meta"):
        module = make()
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def unet_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    return hollow(lambda: diffusers.UNet2DConditionModel(**UNETS[kind]))


def vae_shapes(channels: int = 4, quant: bool = True) -> dict[str, tuple[int, ...]]:
    return hollow(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=channels,
            use_quant_conv=quant, use_post_quant_conv=quant,
        )
    )  # fmt: skip


def sd3_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    return hollow(lambda: diffusers.SD3Transformer2DModel(**SD3_ALL | SD3[kind]))


def flux_shapes(guidance: bool) -> dict[str, tuple[int, ...]]:
    return hollow(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128, num_attention_heads=24,
            joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=guidance,
        )
    )  # fmt: skip


def clip_shapes(config: Mapping[str, Any], projected: bool) -> dict[str, tuple[int, ...]]:
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return hollow(lambda: kind(transformers.CLIPTextConfig(**config)))


def t5_shapes() -> dict[str, tuple[int, ...]]:
    config = transformers.T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    shapes = hollow(lambda: transformers.T5EncoderModel(config))
    return {name: shape for name, shape in shapes.items() if name != "encoder.embed_tokens.weight"}


def thin(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """One number a row, no two alike: enough to see where each row goes."""
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        # a projection is transposed: it needs its columns too
        sides = shape if name == "text_projection.weight" else shape[:1] + (1,) * (len(shape) - 1)
        found[name] = (torch.arange(math.prod(sides)).double() + 10_000_000 * number).reshape(sides)
    return found


def ours(original: Tensors, origins: Callable[[dict[str, TensorEntry]], Any], folder: Path, layouts: Any) -> Tensors:
    """The tensors as our mapping finds them in a file."""
    entries = read_header(layouts.save(original, folder / "original.safetensors"))
    made = origins(entries)
    there = placed(made, entries)
    rest = {name: origin for name, origin in made.items() if name not in there}
    copied = write_copies(rest, entries, folder / "copied.safetensors", "F64") if rest else {}
    return {name: load_tensor(entry) for name, entry in {**there, **copied}.items()}


def assert_same(got: Tensors, expected: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    assert set(got) == set(expected)
    assert set(got) == set(shapes)
    for name, tensor in expected.items():
        assert torch.equal(got[name].squeeze(), tensor.double().squeeze()), name


@pytest.mark.parametrize("kind", list(UNETS))
def test_unets(kind: str, layouts: Any, tmp_path: Path) -> None:
    shapes = unet_shapes(kind)
    config = dict(UNETS[kind], layers_per_block=2)
    original = layouts.unet(thin(shapes), 2)
    expected = library.convert_ldm_unet_checkpoint(layouts.prefixed("model.diffusion_model.", original), config)
    got = ours(original, lambda part: unet_origins(part, config), tmp_path, layouts)
    assert_same(got, expected, shapes)


@pytest.mark.parametrize(("channels", "quant"), [(4, True), (16, False)])
def test_autoencoders(channels: int, quant: bool, layouts: Any, tmp_path: Path) -> None:
    shapes = vae_shapes(channels, quant)
    config = {"block_out_channels": [128, 256, 512, 512], "down_block_types": [""] * 4, "up_block_types": [""] * 4}
    original = layouts.vae(thin(shapes), 4)
    expected = library.convert_ldm_vae_checkpoint(layouts.prefixed("first_stage_model.", original), config)
    got = ours(original, lambda part: vae_origins(part, config), tmp_path, layouts)
    assert_same(got, expected, shapes)


@pytest.mark.parametrize(("config", "projected"), [(CLIP_H, False), (CLIP_G, True)])
def test_open_clip(config: dict[str, Any], projected: bool, layouts: Any, tmp_path: Path) -> None:
    shapes = layouts.hf_clip(clip_shapes(config, projected))
    original = layouts.open_clip(thin(shapes), layers_more=0 if projected else 1)
    prefix = "conditioner.embedders.1.model." if projected else "cond_stage_model.model."
    model = type("Model", (), {"config": transformers.CLIPTextConfig(**config)})
    expected = library.convert_open_clip_checkpoint(model, layouts.prefixed(prefix, original), prefix)
    origins = text.projected_open_clip_origins if projected else text.open_clip_origins
    got = ours(original, lambda part: origins(part, config), tmp_path, layouts)
    assert_same(got, expected, shapes)


@pytest.mark.parametrize("kind", list(SD3))
def test_sd3_transformers(kind: str, layouts: Any, tmp_path: Path) -> None:
    shapes = sd3_shapes(kind)
    config = SD3_ALL | SD3[kind]
    original = layouts.sd3(thin(shapes), config["num_layers"])
    expected = library.convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    got = ours(original, lambda part: transformer.sd3_origins(part, config), tmp_path, layouts)
    assert_same(got, expected, shapes)


@pytest.mark.parametrize("guidance", [True, False])
def test_flux_transformers(guidance: bool, layouts: Any, tmp_path: Path) -> None:
    shapes = flux_shapes(guidance)
    config = {"num_attention_heads": 24, "attention_head_dim": 128}
    original = layouts.flux(thin(shapes))
    expected = library.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    got = ours(original, lambda part: transformer.flux_origins(part, config), tmp_path, layouts)
    assert_same(got, expected, shapes)


def hollow_file(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """A checkpoint of gigabytes that takes no room: the header, and a hole where its numbers would be."""
    at, header = 0, {}
    for name, shape in shapes.items():
        length = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path


def on_meta(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def whole_checkpoint(kind: str, layouts: Any) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published checkpoint."""
    clip, prefixed = {"Stable Diffusion 1": CLIP_L, "Stable Diffusion 2": CLIP_H}.get(kind, CLIP_L), layouts.prefixed
    if kind in UNETS:
        found = prefixed("model.diffusion_model.", layouts.unet(on_meta(unet_shapes(kind)), 2))
        found |= prefixed("first_stage_model.", layouts.vae(on_meta(vae_shapes()), 4))
    elif kind == "Flux":
        found = prefixed("model.diffusion_model.", layouts.flux(on_meta(flux_shapes(True))))
        found |= prefixed("vae.", layouts.vae(on_meta(vae_shapes(16, False)), 4))
    else:
        found = prefixed("model.diffusion_model.", layouts.sd3(on_meta(sd3_shapes(kind)), SD3[kind]["num_layers"]))
        found |= prefixed("first_stage_model.", layouts.vae(on_meta(vae_shapes(16, False)), 4))
    if kind == "Stable Diffusion 1":
        found |= prefixed("cond_stage_model.transformer.", layouts.hf_clip(on_meta(clip_shapes(clip, False))))
    elif kind == "Stable Diffusion 2":
        encoder = layouts.open_clip(on_meta(clip_shapes(clip, False)), layers_more=1)
        found |= prefixed("cond_stage_model.model.", encoder)
    elif kind in UNETS:
        number = 1 if kind == "Stable Diffusion XL" else 0
        encoder = layouts.open_clip(on_meta(clip_shapes(CLIP_G, True)))
        found |= prefixed(f"conditioner.embedders.{number}.model.", encoder)
        if number:
            encoder = layouts.hf_clip(on_meta(clip_shapes(CLIP_L, False)))
            found |= prefixed("conditioner.embedders.0.transformer.", encoder)
    else:
        found |= prefixed("text_encoders.clip_l.transformer.", layouts.hf_clip(on_meta(clip_shapes(CLIP_L, False))))
        found |= prefixed("text_encoders.t5xxl.transformer.", on_meta(t5_shapes()))
        if kind != "Flux":
            encoder = layouts.hf_clip(on_meta(clip_shapes(CLIP_G, True)))
            found |= prefixed("text_encoders.clip_g.transformer.", encoder)
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


TITLES = {**{kind: kind for kind in UNETS}, **{kind: "Stable Diffusion 3" for kind in SD3}, "Flux": "Flux"}


@pytest.mark.parametrize("kind", list(TITLES))
def test_a_published_checkpoint_gets_configs_that_fit_every_tensor(kind: str, layouts: Any, tmp_path: Path) -> None:
    path = hollow_file(whole_checkpoint(kind, layouts), tmp_path / "model.safetensors")
    names = read_header(path)
    layout = layout_of(path, names)
    assert layout.title == TITLES[kind]
    for part in layout.parts:
        prefix = part.prefix(names)
        assert prefix is not None, part.folder
        tensors = {n.removeprefix(prefix): e for n, e in names.items() if n.startswith(prefix)}
        assert part.known(tensors)
        config = part.config(tensors)
        assert_published(kind, part.folder, config)
        origins = part.origins(tensors, config)
        there = placed(origins, tensors)
        shapes = dict(there)
        for name, origin in origins.items():
            if name not in there:
                rows = sum(tensors[p.name].shape[0] for p in origin.pieces[:1])
                columns = tensors[origin.pieces[0].name].shape[1:] if origin.pieces else (origin.identity,)
                shapes[name] = TensorEntry(name, "F16", (rows or origin.identity, *columns), 0, 0, path)
        bound = bind_module(built(part, config), shapes)
        assert len(bound.linked) > 100
        assert bound.transforms == {}


def built(part: Any, config: dict[str, Any]) -> Any:
    """The library's module of a config, without weights."""
    library_of = {"diffusers": diffusers, "transformers": transformers}[part.library]
    cls = getattr(library_of, part.kind)
    with torch.device("meta"):
        return cls.from_config(config) if part.library == "diffusers" else cls(cls.config_class.from_dict(config))


def assert_published(kind: str, folder: str, config: dict[str, Any]) -> None:
    """What the shapes do not tell is as the model was published."""
    published = {"unet": UNETS.get(kind), "transformer": SD3_ALL | SD3[kind] if kind in SD3 else {}}.get(folder) or {}
    if folder.startswith("text_encoder") and config["model_type"] != "t5":
        widths = {c["hidden_size"]: {"hidden_act": "quick_gelu"} | c for c in (CLIP_L, CLIP_H, CLIP_G)}
        published = widths[config["hidden_size"]]
    if folder == "vae":
        scaling = {"Flux": (0.3611, 0.1159), **dict.fromkeys(SD3, (1.5305, 0.0609))}
        xl = kind.startswith("Stable Diffusion XL")
        wanted = scaling.get(kind, (0.13025 if xl else 0.18215, None))
        assert (config["scaling_factor"], config.get("shift_factor")) == wanted
    for name, value in published.items():
        got, value = config[name], list(value) if isinstance(value, tuple) else value
        if isinstance(got, list) and isinstance(value, int):  # the same depth wherever there is an attention
            assert set(got) - {1} == {value}
        else:
            assert got == value, name


@pytest.mark.parametrize(
    ("kind", "pad", "scheduler", "size"),
    [
        ("Stable Diffusion 1", "<|endoftext|>", {"_class_name": "PNDMScheduler"}, [512, 512]),
        ("Stable Diffusion 2", "!", {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, [768, 768]),
    ],
)
def test_a_published_checkpoint_needs_no_other_folder(
    kind: str, pad: str, scheduler: dict[str, str], size: list[int], layouts: Any, tmp_path: Path
) -> None:
    path = hollow_file(whole_checkpoint(kind, layouts), tmp_path / "model.safetensors")
    source = find_source(str(path))
    assert source.name == "model"
    settings, _ = write_layout(source, tmp_path)
    assert settings["size"] == size
    assert settings["scheduler"].items() >= scheduler.items()
    assert any("--prediction-type" in note for note in source.notes) == (kind == "Stable Diffusion 2")
    ours = PromptTokenizer.from_folder(tmp_path / "tokenizer")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs.pad_token == pad
    prompt = "A café at Night, (red:1.2)"
    wanted = theirs(prompt, padding="max_length", max_length=77).input_ids
    assert ours.encode(prompt, weights=False).ids.tolist() == [wanted]
    assert [c.spec.name for c in source.components] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_nothing_reads_a_file_of_gigabytes(layouts: Any, python: Callable[..., Any], tmp_path: Path) -> None:
    path = hollow_file(whole_checkpoint("Stable Diffusion 2", layouts), tmp_path / "model.safetensors")
    assert path.stat().st_size > 2_000_000_000
    done = python(
        "import sys, json\n"
        "from pathlib import Path\n"
        "from vitrify.export.job import find_source\n"
        "found = sum(len(c.tensors(Path(sys.argv[2]))) for c in find_source(sys.argv[1]).components)\n"
        "heavy = [m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules]\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(json.dumps([found, heavy, int(peak)]))",
        path,
        tmp_path / "side",
    )
    assert done.code == 0, done.err
    found, heavy, kilobytes = done.json
    assert found > 1500
    assert heavy == []
    assert kilobytes < 250_000
    assert not (tmp_path / "side").exists(), "all of it is referred to"


def test_trainers_marks_tell_what_a_model_predicts(layouts: Any, tmp_path: Path) -> None:
    shapes = whole_checkpoint("Stable Diffusion 1", layouts)
    plain = find_source(str(hollow_file(shapes, tmp_path / "plain.safetensors")))
    marked = str(hollow_file(shapes | {"v_pred": (), "ztsnr": ()}, tmp_path / "model.safetensors"))
    for config in (None, str(plain.folder)):
        source = find_source(marked, config=config)
        scheduler = json.loads((source.folder / "scheduler/scheduler_config.json").read_text())
        assert scheduler["prediction_type"] == "v_prediction"
        assert scheduler["rescale_betas_zero_snr"] is True
