"""A SentencePiece model as tokenizer.json: T5's older layout in the one that the pipelines read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..core.errors import BadInput, DiskError, MissingDependency
from .graph import quiet

SPIECE = "spiece.model"


def tokenizer_json_from_spiece(folder: Path, target: Path) -> None:
    """Write the tokenizer.json of a T5 tokenizer's folder that has spiece.model only, as transformers converts it.

    Raises:
        BadInput: transformers cannot convert it: the file is damaged.
        MissingDependency: what transformers needs for it is not installed.
        DiskError: `target` cannot be written.
    """
    import transformers

    lacking = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if lacking:
        raise MissingDependency(
            f"{folder} has {SPIECE} but no tokenizer.json; converting it needs {' and '.join(lacking)}.",
            "Run `pip install sentencepiece protobuf`, or put the model's tokenizer.json there.",
        )
    try:
        with quiet():
            tokenizer = transformers.T5TokenizerFast.from_pretrained(folder)
        text = tokenizer.backend_tokenizer.to_str(pretty=True)
    except Exception as exc:  # whatever the libraries below transformers raise
        first = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
        raise BadInput(
            f"{folder} has {SPIECE} but no tokenizer.json, which could not be converted: {type(exc).__name__}: {first}",
            "Put the model's tokenizer.json there, or download its tokenizer again.",
        ) from exc
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise DiskError(
            f"{target} could not be written: {exc.strerror}.", "Free space, or use another folder."
        ) from exc


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
