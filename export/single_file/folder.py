"""A single checkpoint's configs, scheduler and tokenizers as a diffusers folder without weights, in the cache.

All that reads a model's folder reads such a one too. Its content is its key, so it is written once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.cache import Cache, key_of
from ...core.errors import BadInput

KIND = "configs"
# CLIP's vocabulary, 49,408 words, which every text encoder of these families was trained with; it lies beside the
# built-in model, in the package
_CLIP = Path(__file__).resolve().parents[2] / "demo" / "models" / "emoji-diffusion" / "tokenizer"


def as_json(value: Mapping[str, Any]) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def clip_tokenizer(pad: str) -> dict[str, bytes]:
    """CLIP's tokenizer, file name -> content.

    Args:
        pad: the token that fills a prompt up.

    Raises:
        BadInput: this installation lacks the built-in model that the vocabulary lies with.
    """
    path = _CLIP / "tokenizer.json"
    if not path.is_file():
        raise BadInput(
            f"CLIP's vocabulary is not in this installation ({path}).",
            "Give --config FOLDER, a diffusers folder or an artifact of the same architecture.",
        )
    end = "<|endoftext|>"
    settings = {
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": end,
    }
    return {"tokenizer.json": path.read_bytes(), "tokenizer_config.json": as_json(settings)}


def written(files: Mapping[str, bytes], cache: Cache | None = None) -> Path:
    """A folder that holds these files, path below it -> content.

    Raises:
        BadInput: the cache is too small for it.
        DiskError: the cache cannot be written.
    """
    cache = cache or Cache()
    key = key_of({name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())})
    found = cache.get(KIND, key)
    if found is not None:
        return found
    with cache.put(KIND, key) as scratch:
        for name, content in files.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    found = cache.get(KIND, key)
    if found is None:
        raise BadInput(
            f"The cache may hold {cache.limit} bytes, too few for a model's configs and tokenizers.",
            "Raise VITRIFY_CACHE_MAX.",
        )
    return found
