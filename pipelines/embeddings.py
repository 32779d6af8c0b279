"""Textual inversion: words that stand for vectors in a text encoder's table (Gal et al., "An Image is Worth One Word").

The vectors take the rows of ids that no text can give, so that the table keeps its size: every runtime replaces a
weight of the same shape by name, whatever it compiled. Such ids there are: CLIP's vocabulary begins with all 256 bytes,
of which UTF-8 never uses 13 (C0, C1, F5 to FF), and its text is lower case, so that no token with A to Z comes out.
Each is there twice, inside a word and at its end: 78 rows. diffusers lengthens the table instead. The states come out
the same; where a model's config says eos_token_id 2, as SDXL's does, transformers reads the pooled vector at the
largest id, which is then no longer the text's end: here it still is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.artifact import Component
from ..core.dtypes import FLOATS
from ..core.errors import BadInput
from ..core.safetensors_header import TensorEntry, read_header, read_tensor
from ..core.tensors import Array
from ..runtimes.stored import StoredWeight, stored_weights
from .prompt import PromptTokenizer

_TABLE = "token_embedding.weight"
# the names of several encoders' vectors in one file, as kohya-ss and diffusers' trainers write them
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2",
             "text_encoders_0": "text_encoder", "text_encoders_1": "text_encoder_2"}  # fmt: skip
_NAMELESS = ("emb_params", "*")  # AUTOMATIC1111's: the word is the file's name
_NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
_WORD_END = "</w>"


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors. vectors: text encoder's component -> float32 [n, dim], n the same for all."""

    word: str
    vectors: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Embedded:
    """What `embed` makes. overrides: component -> its changed table by name. tokenizers: component -> a new one."""

    overrides: Mapping[str, Mapping[str, Array]]
    tokenizers: Mapping[str, PromptTokenizer]


def read_embedding(path: Path | str, word: str | None = None) -> Embedding:
    """Read a .safetensors file: `emb_params`, one tensor under its word, or `clip_l` and `clip_g`.

    Args:
        word: what stands for it in a prompt; None: the one in the file, else the file's name.

    Raises:
        BadInput: no embedding, or a pickle.
        DiskError: the disk failed.
    """
    path = Path(path)
    entries = read_header(path)
    several = {name: entry for name, entry in entries.items() if name in _ENCODERS}
    if len(entries) == 1 and not several:
        ((name, entry),) = entries.items()
        found = {"text_encoder": _vectors(path, entry)}
        word = word or (path.stem if name in _NAMELESS else name)
    elif several and len(several) == len(entries):
        found = {_ENCODERS[name]: _vectors(path, entry) for name, entry in several.items()}
        word = word or path.stem
    else:
        names = ", ".join(list(entries)[:3]) or "nothing"
        raise BadInput(
            f"{path} is no textual inversion embedding: it holds {names}{', ...' if len(entries) > 3 else ''}.",
            "Give a file with emb_params, with one tensor, or with clip_l and clip_g.",
        )
    if len({len(v) for v in found.values()}) > 1:
        raise BadInput(f"{path} has different numbers of vectors for its encoders.", "Download the file again.")
    return Embedding(word, found)


def _vectors(path: Path, entry: TensorEntry) -> npt.NDArray[np.float32]:
    if entry.dtype not in FLOATS or len(entry.shape) not in (1, 2) or not entry.elements:
        raise BadInput(
            f"{path}: {entry.name} is {entry.dtype} {list(entry.shape)}, not vectors [n, dim].",
            "Give an embedding's .safetensors file.",
        )
    values = read_tensor(entry, "float32")
    if not np.isfinite(values).all():
        raise BadInput(f"{path}: {entry.name} holds NaN or infinity.", "Download the file again.")
    return np.atleast_2d(values)


def embed(
    components: Mapping[str, Component],
    tokenizers: Mapping[str, PromptTokenizer],
    embeddings: Sequence[Embedding],
) -> Embedded:
    """Give each embedding's word its vectors.

    Args:
        components: of an artifact. tokenizers: text encoder's component -> its tokenizer.

    Raises:
        BadInput: vectors of another width than the model's, an encoder that gets none, a word that the vocabulary has
            already, or more vectors than there are free rows.
        UsageError: a component's weights cannot be changed (a plan).
    """
    tables = {name: _table(components[name]) for name in tokenizers if name in components}
    encoders = {name: table for name, table in tables.items() if table is not None}
    for embedding in embeddings:
        missing = [n for n in encoders if n not in embedding.vectors]
        foreign = [n for n in embedding.vectors if n not in encoders]
        if missing or foreign:
            raise BadInput(
                f"The embedding {embedding.word} has vectors for {', '.join(sorted(embedding.vectors))}; this model's "
                f"words go through {', '.join(encoders) or 'no CLIP'}.",
                "Use an embedding that was made for this model.",
            )
    overrides, made = {}, {}
    for name, table in encoders.items():
        wanted = {e.word: e.vectors[name] for e in embeddings}
        overrides[name], made[name] = _embedded(name, table, tokenizers[name], wanted)
    return Embedded(overrides, made)


def _embedded(
    name: str, table: StoredWeight, tokenizer: PromptTokenizer, wanted: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, Array], PromptTokenizer]:
    assert table.entry is not None
    rows, width = table.entry.shape
    for word, vectors in wanted.items():
        if vectors.shape[1] != width:
            raise BadInput(
                f"The embedding {word} has vectors of {vectors.shape[1]} numbers; {name} takes {width}.",
                "Use an embedding that was made for this model.",
            )
    needed = sum(len(v) for v in wanted.values())
    free = [i for i in free_ids(tokenizer) if i < rows]
    if needed > len(free):
        raise BadInput(
            f"The embeddings have {needed} vectors; {name}'s vocabulary has {len(free)} rows that no text uses.",
            "Use fewer embeddings at a time.",
        )
    if not needed:
        return {}, tokenizer
    changed = read_tensor(table.entry, "float32")
    words = {}
    for word, vectors in wanted.items():
        words[word], free = free[: len(vectors)], free[len(vectors) :]
        changed[words[word]] = vectors
    return {table.name: changed}, tokenizer.with_words(words)


def _table(component: Component) -> StoredWeight | None:
    """A CLIP's table of token vectors; None of an encoder that has none that can be changed."""
    weights = stored_weights(component).values()
    return next((w for w in weights if w.name.endswith(_TABLE) and w.entry is not None), None)


def free_ids(tokenizer: PromptTokenizer) -> list[int]:
    """The ids that no text can give, in order: their tokens hold a character that never reaches the vocabulary."""
    settings = tokenizer.json
    never: set[str] = set()
    if _has(settings.get("pre_tokenizer"), "ByteLevel"):
        never |= {_byte_characters()[byte] for byte in _NEVER_IN_UTF8}
    if _has(settings.get("normalizer"), "Lowercase"):
        never |= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    added = {token["id"] for token in settings.get("added_tokens", ())} | {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    vocabulary = settings["model"]["vocab"]
    if not isinstance(vocabulary, dict):  # a unigram model's is a list
        return []
    found = (i for token, i in vocabulary.items() if never & set(token.removesuffix(_WORD_END)) and i not in added)
    return sorted(found)


def _has(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of this kind, or a sequence with one of it."""
    if not isinstance(part, dict):
        return False
    inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
    return part.get("type") == kind or any(_has(one, kind) for one in inner)


def _byte_characters() -> dict[int, str]:
    """What stands for each byte in a byte-level vocabulary: itself where it prints, else from 256 on (GPT-2's rule)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printed}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printed))
    return table
