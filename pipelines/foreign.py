"""Folders that Optimum exported: recognized by their layout, opened with a manifest made on the fly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact, Component, WeightFile
from ..core.errors import BadArtifact
from ..core.registry import load_runtime
from .settings import classifier_settings, sd_settings

_GRAPH = "model.onnx"
_SD = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def is_foreign(root: Path) -> bool:
    """Whether the folder looks like an export to ONNX that another tool wrote."""
    return (root / "unet" / _GRAPH).is_file() or ((root / _GRAPH).is_file() and (root / "config.json").is_file())


def foreign_artifact(root: Path) -> Artifact:
    """A manifest in memory; every proof is `not run`.

    Raises:
        BadArtifact: a config is missing or broken, or a graph does not load.
        BadInput: a config lacks something or asks for what is not supported.
    """
    if (root / "unet" / _GRAPH).is_file():
        names = [n for n in _SD if (root / n / _GRAPH).is_file()]
        vae = next((n for n in ("vae_decoder", "vae") if (root / n / "config.json").is_file()), "vae_decoder")
        settings = sd_settings(
            _json(root / "unet/config.json"),
            _json(root / vae / "config.json"),
            _json(root / "scheduler/scheduler_config.json"),
        )
        architecture = str(_json(root / "model_index.json").get("_class_name", "StableDiffusionPipeline"))
        graphs = {n: f"{n}/{_GRAPH}" for n in names}
        kept = {p.name for p in (root / "tokenizer").glob("*")} if (root / "tokenizer").is_dir() else set()
        settings["files"] = {"tokenizer": f"tokenizer/{'tokenizer.json' if 'tokenizer.json' in kept else 'vocab.json'}"}
    else:
        config = _json(root / "config.json")
        settings = classifier_settings(config, _json(root / "preprocessor_config.json"))
        architecture = str((config.get("architectures") or ["?"])[0])
        graphs = {"model": _GRAPH}
    components = {name: _component(name, path, root) for name, path in graphs.items()}
    artifact = Artifact(
        root=root,
        id="",
        model={"source": str(root), "architecture": architecture, "revision": None},
        pipeline=settings,
        components=components,
        proof={"images": "not run", "labels": "not run"},
    )
    artifact.verify()
    return artifact


def _component(name: str, path: str, root: Path) -> Component:
    """A component whose inputs and outputs are read from its graph, by the runtime that will open it."""
    inputs, outputs = load_runtime("onnx").describe(root / path)
    folder = (root / path).parent
    data = [p for p in sorted(folder.glob("*")) if p.suffix in (".onnx_data", ".data") or p.name.endswith(".onnx.data")]
    weights = tuple(WeightFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in data)
    return Component(name, "onnx", path, inputs, outputs, weights, root=root)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise BadArtifact(f"{path} cannot be read: {exc}.", "Copy the whole folder again.") from exc
    if not isinstance(data, dict):
        raise BadArtifact(f"{path} holds no JSON object.", "Copy the whole folder again.")
    return data
