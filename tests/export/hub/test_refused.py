"""What is not fetched: what is not there or not allowed, what cannot be stored, and models that are not supported."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import BadInput, DiskError, MissingDependency
from vitrify.export.hub import fetch
from vitrify.export.source import open_source

FACES = "dima806/facial_emotions_image_detection"
COMMIT = "1" * 40


def test_a_gated_repository(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/gated"] = hub.faces()
    hub.gated.add("a/gated")
    with pytest.raises(BadInput, match=r"is gated.*huggingface\.co/a/gated, then pass --token or run `hf auth login`"):
        hub.get("a/gated", tmp_path)
    assert hub.get("a/gated", tmp_path, token="good").revision == COMMIT
    with pytest.raises(BadInput, match="refuses the token"):
        hub.get("a/gated", tmp_path, token="wrong")


def test_what_does_not_exist(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a/none .*does not exist or is private.*Check the spelling"):
        hub.get("a/none", tmp_path)
    with pytest.raises(BadInput, match="no repository of the Hub"):
        hub.get("a/b/c", tmp_path)


@pytest.mark.parametrize(("status", "says"), [(429, "no more requests"), (500, "cannot be reached"), (403, "gated")])
def test_a_hub_in_trouble(hub: Any, tmp_path: Path, status: int, says: str) -> None:
    hub.status = status
    with pytest.raises(BadInput, match=says):
        hub.get(FACES, tmp_path)


def test_no_hub_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"cannot be reached.*Check the connection"):
        fetch(FACES, endpoint="http://127.0.0.1:9", cache=tmp_path)
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"emojii is no path here, and the Hub .*Did you mean emoji\? Check"):
        fetch("emojii", endpoint="http://127.0.0.1:9", cache=tmp_path / "cache")
    with pytest.raises(BadInput, match=r"is not in the cache .*Run it once online"):
        fetch(FACES, cache=tmp_path, offline=True)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model.bin", "tf_model.h5", "training_args.bin"]])
def test_only_pickles(hub: Any, tmp_path: Path, names: list[str]) -> None:
    hub.repos["a/old"] = {"config.json": hub.config(), **dict.fromkeys(names, b"PK")}
    with pytest.raises(BadInput, match=r"no safetensors, only pytorch_model\.bin.*safetensors/convert"):
        hub.get("a/old", tmp_path)
    assert not hub.files() & set(names)


def test_repositories_of_another_kind(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/single"] = {"README.md": b"", "sd_xl_base.safetensors": hub.weights(), "sd.ckpt": b"PK"}
    with pytest.raises(BadInput, match=r"neither model_index\.json nor config\.json \(it has sd\.ckpt, sd_xl"):
        hub.get("a/single", tmp_path)
    hub.repos["a/bare"] = {"config.json": hub.config()}
    with pytest.raises(BadInput, match=r"a/bare has no weights"):
        hub.get("a/bare", tmp_path)
    files = hub.pipeline()
    del files["unet/diffusion_pytorch_model-00002-of-00002.safetensors"]
    hub.repos["a/holed"] = files
    with pytest.raises(BadInput, match=r"lacks unet/diffusion_pytorch_model-00002-of-00002\.safetensors"):
        hub.get("a/holed", tmp_path)
    hub.repos["a/broken"] = {**hub.pipeline(), "model_index.json": b"{"}
    with pytest.raises(BadInput, match="is not JSON"):
        hub.get("a/broken", tmp_path)


def test_a_cache_without_the_weights(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    (hub.get(FACES, tmp_path).folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"In the cache \(offline\).*no weights.*Run it once online"):
        hub.get(FACES, tmp_path, offline=True)


def test_a_full_disk(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[FACES] = hub.faces() | {"model.safetensors": hub.weights(1000)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9000, 8000, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"GB free.*Make room"):
        hub.get(FACES, tmp_path)
    assert "model.safetensors" not in hub.files()


def test_a_cache_that_cannot_be_written(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cache failed"):
        hub.get(FACES, tmp_path / "file")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "huggingface_hub":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(MissingDependency, match=r'pip install "vitrify\[export\]"'):
        fetch(FACES)


def refusal(folder: Path, files: dict[str, bytes], given: str) -> str:
    """What `open_source` says of these files in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(BadInput) as caught:
        open_source(folder, given=given)
    return str(caught.value)


def bare(files: dict[str, bytes], name: str, **changed: Any) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | changed).encode()}


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
UNSUPPORTED = {
    "another pipeline": lambda hub: bare(hub.pipeline(), "model_index.json", _class_name="WanPipeline"),
    "another model type": lambda hub: bare(hub.faces(), "config.json", **BERT),
    "another head": lambda hub: bare(hub.faces(), "config.json", architectures=["ViTModel"]),
    "no preprocessing": lambda hub: {n: d for n, d in hub.faces().items() if n != "preprocessor_config.json"},
    "depth": lambda hub: bare(hub.pipeline(), "unet/config.json", in_channels=5),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_is_not_supported_is_refused_before_its_weights(hub: Any, tmp_path: Path, kind: str) -> None:
    hub.repos["a/model"] = UNSUPPORTED[kind](hub)
    said = refusal(tmp_path / "folder", hub.repos["a/model"], "a/model")
    by_class = kind.startswith("another")  # for which the cache's weights need not be known either
    for offline in (False, True) if by_class else (False,):
        with pytest.raises(BadInput) as caught:
            hub.get("a/model", tmp_path / "cache", offline=offline)
        assert str(caught.value) == said
    assert hub.files("HEAD"), "the class is known from a file of the hub"
    assert not [path for _, path in hub.asked if path.endswith((".safetensors", ".bin", ".ckpt"))]
