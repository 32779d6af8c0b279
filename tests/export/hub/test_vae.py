"""A VAE alone from the Hub: its two files and no others, refused before its weights, named at its commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.export.hub import fetch_vae
from vitrify.export.vae_source import vae_source

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs vitrify[export]")

COMMIT = "1" * 40
KL = {
    "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "block_out_channels": [8, 16], "scaling_factor": 0.13025,
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def alone(hub: Any, **changed: Any) -> dict[str, bytes]:
    others = dict.fromkeys(("sdxl_vae.safetensors", "diffusion_pytorch_model.bin", "README.md"), b"PK")
    return {"config.json": json.dumps(KL | changed).encode(), WEIGHTS: hub.weights(), **others}


def test_a_vae_alone(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/vae"] = alone(hub)
    fetched = fetch_vae("a/vae", endpoint=hub.url, cache=tmp_path)
    assert {path.name for path in fetched.folder.iterdir()} == {"config.json", WEIGHTS}
    assert hub.files("HEAD") == {"config.json", WEIGHTS}
    hub.asked.clear()
    assert fetch_vae("a/vae", endpoint=hub.url, cache=tmp_path, offline=True) == fetched
    assert not hub.asked


def test_of_a_pipeline_nothing_but_its_vae(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/sd"] = hub.pipeline() | {"vae/config.json": json.dumps(KL).encode()}
    fetch_vae("a/sd", endpoint=hub.url, cache=tmp_path)
    assert hub.files("HEAD") == {"model_index.json", "vae/config.json", f"vae/{WEIGHTS}"}


def test_what_is_no_vae_is_refused_before_its_weights(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/net"] = alone(hub, _class_name="ControlNetModel")
    with pytest.raises(BadInput, match="a/net is a ControlNetModel, not a VAE"):
        fetch_vae("a/net", endpoint=hub.url, cache=tmp_path)
    assert WEIGHTS not in hub.files("HEAD")
    config = json.dumps({name: value for name, value in KL.items() if name != "latent_channels"}).encode()
    hub.repos["a/half"] = alone(hub) | {"config.json": config}
    with pytest.raises(BadInput, match=r"a/half: its config\.json lacks an entry .*latent_channels"):
        fetch_vae("a/half", endpoint=hub.url, cache=tmp_path)
    assert WEIGHTS not in hub.files("HEAD")
    hub.repos["a/part"] = {"model_index.json": b"{}"}
    with pytest.raises(BadInput, match="a/part has no VAE"):
        fetch_vae("a/part", endpoint=hub.url, cache=tmp_path)


def test_it_is_named_at_its_commit(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    hub.repos["a/vae"] = alone(hub)
    assert vae_source("a/vae").named == f"a/vae@{COMMIT}"
    again = vae_source(f"a/vae@{COMMIT}", offline=True)
    assert again.named == f"a/vae@{COMMIT}"
    assert again.config["scaling_factor"] == KL["scaling_factor"]
    with pytest.raises(BadInput, match="has no revision 'other'"):
        vae_source("a/vae@other")
