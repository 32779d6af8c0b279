"""The files beside the graphs, where diffusers and transformers put them: configs, scheduler, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.publish import link_or_copy
from ..pipelines.prompt import PromptTokenizer, write_tokenizer_json
from ..pipelines.settings import classifier_settings, sd_settings
from .source import Source, read_json

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def write_layout(source: Source, root: Path) -> dict[str, Any]:
    """Copy everything but graphs and weights into `root`; returns the manifest's `pipeline` part.

    Raises:
        BadInput: the scheduler, the tokenizer or the preprocessing is missing, broken or not supported.
    """
    if source.family == "image-classification":
        preprocessor = read_json(source.folder / "preprocessor_config.json")
        settings = classifier_settings(source.index, preprocessor)
        shutil.copyfile(source.folder / "config.json", root / "config.json")
        shutil.copyfile(source.folder / "preprocessor_config.json", root / "preprocessor_config.json")
        settings["files"] = {"config": "config.json", "preprocessor": "preprocessor_config.json"}
        return settings
    configs = {c.spec.name: c for c in source.components}
    scheduler = read_json(source.folder / "scheduler/scheduler_config.json")
    settings = sd_settings(configs["unet"].config, configs["vae_decoder"].config, scheduler)
    for name, component in configs.items():
        (root / name).mkdir(exist_ok=True)
        shutil.copyfile(component.config_path, root / name / "config.json")
    (root / "scheduler").mkdir()
    shutil.copyfile(source.folder / "scheduler/scheduler_config.json", root / "scheduler/scheduler_config.json")
    shutil.copyfile(source.folder / "model_index.json", root / "model_index.json")
    _tokenizer(source.folder / "tokenizer", root / "tokenizer")
    settings["files"]["index"] = "model_index.json"
    return settings


def _tokenizer(source: Path, target: Path) -> None:
    """The tokenizer in both layouts: tokenizer.json, which we read; vocab.json and merges.txt, which others want."""
    if not source.is_dir():
        raise BadInput(f"{source} is missing.", "Download the model again, whole.")
    target.mkdir()
    for name in _TOKENIZER:
        if (source / name).is_file():
            link_or_copy(source / name, target / name)  # megabytes, and they are only read
    if not (target / "tokenizer.json").is_file():
        write_tokenizer_json(source, target / "tokenizer.json")
    if not (target / "tokenizer_config.json").is_file():
        raise BadInput(f"{source} has no tokenizer_config.json.", "Download the model again, whole.")
    PromptTokenizer.from_folder(target)
    model = read_json(target / "tokenizer.json").get("model", {})
    if not (target / "vocab.json").is_file() and isinstance(model.get("vocab"), dict):
        (target / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (target / "merges.txt").is_file() and model.get("merges"):
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
