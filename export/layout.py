"""The files beside the graphs, where diffusers and transformers put them: configs, scheduler, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.json_file import read_json_object
from ..core.publish import link_or_copy
from ..pipelines.families import FAMILIES, pipeline_settings
from ..pipelines.families.base import Family
from ..pipelines.prompt import write_tokenizer_json
from ..pipelines.settings import PREVIEW, classifier_settings, is_exchangeable, vae_factors
from .families.classifier import check_size
from .families.controlnet import controlnet_settings
from .source import PREPROCESSOR, Source
from .spiece import SPIECE, tokenizer_json_from_spiece

_INDEX = "model_index.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", SPIECE)


def files_of(source: Source) -> dict[str, Path]:
    """Path in the artifact -> the source's file, of everything but weights that an artifact is made from."""
    if source.family == "image-classification":
        names = {name: source.folder / name for name in ("config.json", PREPROCESSOR)}
    elif source.family == "controlnet":
        names = {"config.json": source.folder / "config.json"}
    else:
        names = {name: source.folder / name for name in (_INDEX, _SCHEDULER)}
        for tokenizer in _tokenizers(source):
            names |= {f"{tokenizer}/{name}": source.folder / tokenizer / name for name in _TOKENIZER}
        names |= {f"{c.spec.name}/config.json": c.config_path for c in source.components}
    return {name: path for name, path in names.items() if path.is_file()}


def write_layout(source: Source, root: Path) -> tuple[dict[str, Any], list[str]]:
    """Write everything but graphs and weights into `root`.

    Returns:
        The manifest's `pipeline` part, and notes: what of the source is not in it, or does not run by itself.

    Raises:
        BadInput: the scheduler, the tokenizer or the preprocessing is missing, broken or not supported.
    """
    settings, notes = _SETTINGS.get(source.family, _pipeline)(source)
    for name, path in files_of(source).items():
        (root / name).parent.mkdir(exist_ok=True)
        if name == _INDEX:
            kept = {"scheduler", *_tokenizers(source), *(c.spec.folder for c in source.components)}
            index, dropped = _without(source.index, kept)
            (root / name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            if "safety_checker" in dropped:
                notes.append("its safety checker is left out: nothing looks at the pictures that it draws")
        elif name.startswith("tokenizer"):
            link_or_copy(path, root / name)  # megabytes, and they are only read
        else:
            shutil.copyfile(path, root / name)
    for tokenizer in _tokenizers(source):
        _complete_tokenizer(source.folder / tokenizer, root / tokenizer, FAMILIES[source.family])
    return settings, notes


def _tokenizers(source: Source) -> list[str]:
    """The folders of the tokenizers of the text encoders that are exported; encoder 2 has tokenizer 2."""
    encoders = dict.fromkeys(c.spec.folder for c in source.components if c.spec.folder.startswith("text_encoder"))
    return [encoder.replace("text_encoder", "tokenizer") for encoder in encoders]


def _classifier(source: Source) -> tuple[dict[str, Any], list[str]]:
    settings = classifier_settings(source.index, read_json_object(source.folder / PREPROCESSOR))
    check_size(source.given, source.index, settings["preprocess"])
    settings["files"] = {"config": "config.json", "preprocessor": PREPROCESSOR}
    return settings, []


def _pipeline(source: Source) -> tuple[dict[str, Any], list[str]]:
    configs = {c.spec.folder: c.config for c in source.components}
    scheduler = read_json_object(source.folder / _SCHEDULER)
    settings = pipeline_settings(source.family, configs, scheduler, source.index)
    settings["files"]["index"] = _INDEX
    if PREVIEW in configs:
        settings["preview"] = vae_factors(configs[PREVIEW])
    if not is_exchangeable(scheduler):
        return settings, []
    return settings, [f"its scheduler {scheduler['_class_name']} is not one of ours: generate needs --scheduler"]


def _controlnet(source: Source) -> tuple[dict[str, Any], list[str]]:
    return controlnet_settings(source.index), []


_SETTINGS = {"image-classification": _classifier, "controlnet": _controlnet}  # of the others: `_pipeline`


def _without(index: dict[str, Any], kept: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """A model_index.json without the parts that are not in `kept`, as diffusers writes what a pipeline has not.

    Their folders are not there, so a loader that follows the file would look for them in vain.
    """
    dropped = [
        name
        for name, value in index.items()
        if name not in kept and isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    ]
    return index | {name: [None, None] for name in dropped}, dropped


def _complete_tokenizer(source: Path, target: Path, family: type[Family]) -> None:
    """The tokenizer in both layouts: tokenizer.json, which we read; vocab.json and merges.txt, which others want."""
    if not source.is_dir():
        raise BadInput(f"{source} is missing.", "Download the model again, whole.")
    target.mkdir(exist_ok=True)
    if not (target / "tokenizer.json").is_file():
        spiece = (source / SPIECE).is_file()
        (tokenizer_json_from_spiece if spiece else write_tokenizer_json)(source, target / "tokenizer.json")
    if not (target / "tokenizer_config.json").is_file():
        raise BadInput(f"{source} has no tokenizer_config.json.", "Download the model again, whole.")
    family.open_tokenizer(target)
    model = read_json_object(target / "tokenizer.json").get("model", {})
    if not model.get("end_of_word_suffix"):  # only CLIP's tokenizers have the older layout
        return
    if not (target / "vocab.json").is_file() and isinstance(model.get("vocab"), dict):
        (target / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    if not (target / "merges.txt").is_file() and model.get("merges"):
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
