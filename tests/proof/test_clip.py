"""CLIP scores of a tiny random model against its embeddings as transformers gives them; what a folder must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.errors import BadInput
from vitrify.proof.clip import Clip
from vitrify.proof.measures import open_measures

torch = pytest.importorskip("torch", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return Clip(clip_folder)


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def embeddings(folder: Path, ids: list[int], pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """The text's and the pictures' as the model's two halves give them, from ids and pixels made by hand."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    mean, deviation = np.array(settings["image_mean"]), np.array(settings["image_std"])
    pixels = np.stack([((np.asarray(p) / 255 - mean) / deviation).transpose(2, 0, 1) for p in pictures])
    with torch.no_grad():
        hidden = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
        text = model.text_projection(hidden[:, ids.index(49407)])  # where the text ends
        seen = model.vision_model(pixel_values=torch.from_numpy(pixels.astype(np.float32))).pooler_output
        return text[0].numpy(), model.visual_projection(seen).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("prompt", ["a red apple", "a small house by the sea", "an angry face"])
def test_the_score_is_100_times_the_cosine_and_never_below_0(clip: Clip, clip_folder: Path, prompt: str) -> None:
    pairs = [(picture(n), picture(n + 1)) for n in range(0, 8, 2)]
    ids = transformers.AutoTokenizer.from_pretrained(clip_folder)(prompt)["input_ids"]
    for reference, given in pairs:
        text, (first, second) = embeddings(clip_folder, ids, [reference, given])
        found = clip.measure(prompt, reference, given)
        assert found["clip_score"] == pytest.approx(max(100 * cosine(second, text), 0), abs=1e-3)
        assert found["clip_score_reference"] == pytest.approx(max(100 * cosine(first, text), 0), abs=1e-3)
        assert found["clip_similarity"] == pytest.approx(cosine(first, second), abs=1e-5)


def test_equal_pictures_are_alike(clip: Clip) -> None:
    found = clip.measure("a red apple", picture(0, (48, 64)), picture(0, (48, 64)))
    assert found["clip_score"] == pytest.approx(found["clip_score_reference"], abs=1e-4)
    assert found["clip_similarity"] == pytest.approx(1, abs=1e-5)


def test_a_longer_prompt_than_the_model_reads_is_cut(clip: Clip) -> None:
    found = clip.measure("a red apple on a table " * 20, picture(0), picture(1))
    again = clip.measure("a red apple on a table " * 20 + "and more", picture(0), picture(1))
    assert found == again


def test_the_weights_are_named_by_their_hash(clip: Clip) -> None:
    assert list(clip.files) == ["model.safetensors"]
    assert len(clip.files["model.safetensors"]) == 64


def weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def test_a_cosine_below_0_scores_0(clip: Clip, clip_folder: Path, tmp_path: Path) -> None:
    """The text's projection turned round makes every positive cosine a negative one."""
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights(lambda t: t.update({"text_projection.weight": -t["text_projection.weight"]}))(folder)
    scores = [c.measure("a red apple", picture(0), picture(1))["clip_score"] for c in (clip, Clip(folder))]
    assert min(scores) == 0
    assert max(scores) > 0


def resized(tensors: dict[str, Any]) -> None:
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"][:4].clone()


def fewer_words(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 600
    (folder / "config.json").write_text(json.dumps(config))
    weights(lambda t: t.update({k: v[:600].clone() for k, v in t.items() if "token_embedding" in k}))(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as a model's config"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be read as a model's config"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "of the type 'bert', not 'clip'"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "holds no weights as safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 64), "does not open as a CLIP model"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "does not open as a CLIP model"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "holds no settings of pictures"),
        (weights(lambda t: t.pop("text_projection.weight")), "lacks: text_projection.weight"),
        (weights(resized), "has in another shape: visual_projection.weight"),
        (fewer_words, "a tokenizer of 49408 tokens, and a model that knows 600"),
    ],
)
def test_a_folder_that_is_no_good_says_why(
    clip_folder: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    damage(folder)
    with pytest.raises(BadInput, match=said) as caught:
        Clip(folder)
    assert "config.json, weights, tokenizer, preprocessor_config.json" in caught.value.fix


def test_a_hub_id_is_no_folder() -> None:
    with pytest.raises(BadInput, match="openai/clip-vit-base-patch32, which should hold a CLIP model, is not there"):
        open_measures(clip=Path("openai/clip-vit-base-patch32"))


def test_only_what_is_asked_for_is_opened(clip_folder: Path) -> None:
    assert open_measures() == {}
    assert list(open_measures(clip=clip_folder)) == ["clip"]
