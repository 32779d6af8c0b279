"""The built-in diffusion model in float32, exported, beside diffusers' pipeline of it; and LoRAs for it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from vitrify.core.artifact import Artifact
from vitrify.core.safetensors_header import read_tensor
from vitrify.runtimes.stored import stored_weights

# what LoRAs change: attention, feed-forward, projections, and with LoCon convolutions
LINEARS = {"unet": ("attn", "ff.net", "proj_in", "proj_out"), "text_encoder": ("self_attn", "mlp")}
CONVS = ("resnets", "samplers")
Factors = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # component -> weight -> (down, up)


@pytest.fixture(scope="session")
def float_source(diffusion_source: Path, shared: Path) -> Path:
    folder = shared / "models" / "emoji-float32"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            half = folder.with_name(".emoji-float32")
            shutil.copytree(diffusion_source, half)
            for path in half.glob("*/*.safetensors"):
                save_file({n: t.astype(np.float32) for n, t in load_file(path).items()}, path, {"format": "pt"})
            half.rename(folder)
    return folder


@pytest.fixture(scope="session")
def artifact(float_source: Path, shared: Path) -> Artifact:
    pytest.importorskip("torch", reason="needs the extra export")
    from vitrify.export.job import export_model

    target = shared / "emoji-float32"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            export_model(float_source, target, verify=False)
    return Artifact.load(target)


@pytest.fixture
def theirs(float_source: Path) -> Iterator[Any]:
    """diffusers' pipeline; each test gets its own, to load LoRAs into."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
    pytest.importorskip("peft", reason="diffusers loads LoRAs with it")
    torch = pytest.importorskip("torch", reason="needs the extra export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, of its dependencies
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(float_source, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline


@pytest.fixture
def factors(artifact: Artifact) -> Callable[..., Factors]:
    """factors(seed, rank, convs=True, size=0.2): random changes, `size` times as large as the weights."""

    def make(seed: int, rank: int, convs: bool = True, size: float = 0.2) -> Factors:
        rng, out = np.random.default_rng(seed), {}
        for component, parts in LINEARS.items():
            wanted = (*parts, *(CONVS if convs else ()))
            weights = stored_weights(artifact.components[component])
            out[component] = {}
            for name, weight in weights.items():
                if not any(p in name for p in wanted) or weight.entry is None:
                    continue
                values = read_tensor(weight.entry, "float32")
                if not convs and values.ndim == 4 and max(values.shape[2:]) > 1:
                    continue
                down = rng.standard_normal((rank, *values.shape[1:])).astype(np.float32)
                up = rng.standard_normal((len(values), rank, *(1 for _ in values.shape[2:]))).astype(np.float32)
                out[component][name] = down, (up * size * values.std() / np.sqrt(rank)).astype(np.float32)
        return out

    return make


def kohya_name(component: str, weight: str) -> str:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[component]
    return prefix + weight.removeprefix("text_model.").removesuffix(".weight").replace(".", "_")


@pytest.fixture
def save_kohya(tmp_path: Path) -> Callable[..., Path]:
    """save_kohya(factors, alpha) writes them as kohya-ss does; where alpha is not the rank, `up` makes up for it."""

    def save(factors: Factors, alpha: float, name: str = "style") -> Path:
        tensors = {}
        for component, weights in factors.items():
            for weight, (down, up) in weights.items():
                layer = kohya_name(component, weight)
                tensors[f"{layer}.lora_down.weight"] = down
                tensors[f"{layer}.lora_up.weight"] = up * np.float32(len(down) / alpha)
                tensors[f"{layer}.alpha"] = np.array(alpha, np.float32)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return save


@pytest.fixture
def encoder_inputs() -> Mapping[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(0).integers(0, 49406, (2, 77))}
