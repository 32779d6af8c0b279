"""What the tests of measures share: folders of random weights as users have them of trained ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# torchvision's index in `features` -> channels out, channels in, side
CONVS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
SETTINGS = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def lpips_weights() -> Weights:
    """Of a scale that keeps the features alive, under the names of torchvision and of the lpips package."""
    rng = np.random.default_rng(3)
    made: Weights = {}
    for number, (index, (out, given, side)) in enumerate(CONVS.items()):
        scale = (2 / (given * side * side)) ** 0.5
        made[f"features.{index}.weight"] = rng.normal(0, scale, (out, given, side, side)).astype(np.float32)
        made[f"features.{index}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
        made[f"lin{number}.model.1.weight"] = rng.uniform(0, 1, (1, out, 1, 1)).astype(np.float32)
    return made


@pytest.fixture(scope="session")
def save_weights() -> Callable[[Path, Weights], None]:
    """save_weights(path, weights): as .pth or .safetensors, by the path's ending."""

    def save(path: Path, weights: Weights) -> None:
        import torch
        from safetensors.torch import save_file

        tensors: dict[str, Any] = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        (torch.save if path.suffix == ".pth" else save_file)(tensors, path)

    return save


@pytest.fixture(scope="session")
def lpips_folder(
    lpips_weights: Weights, save_weights: Callable[[Path, Weights], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """AlexNet's weights, with a layer that LPIPS has no use for as its file has, and the fitted ones. For reading."""
    pytest.importorskip("torch", reason="needs the extra export")
    folder = tmp_path_factory.mktemp("lpips")
    alexnet = {n: w for n, w in lpips_weights.items() if n.startswith("features")}
    save_weights(folder / "alexnet.safetensors", alexnet | {"classifier.6.bias": np.zeros(1000, np.float32)})
    save_weights(folder / "alex.pth", {n: w for n, w in lpips_weights.items() if n.startswith("lin")})
    return folder


@pytest.fixture(scope="session")
def clip_folder(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model that reads 16 tokens, with the tokenizer of the built-in model, which is CLIP's. For reading."""
    torch = pytest.importorskip("torch", reason="needs the extra export")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    from vitrify.runtimes.torch.modules import no_bars

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"max_position_embeddings": 16, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = transformers.CLIPConfig(
        text_config=small | words, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8
    )
    with torch.random.fork_rng(), no_bars():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    for file in (diffusion_source / "tokenizer").iterdir():
        shutil.copy(file, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder
