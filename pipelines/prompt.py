"""Text prompts to chunks of token ids, with a weight a token.

The weight syntax is that of AUTOMATIC1111's stable-diffusion-webui (its wiki, "Attention/emphasis"); the ids of a
plain prompt are those that diffusers' StableDiffusionPipeline makes with transformers' CLIPTokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import BadInput, DiskError
from ..core.json_file import read_json_object

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

BREAK = ("BREAK", -1.0)
"""What `parse_weights` puts where the prompt says BREAK: the next text starts a new chunk."""

NO_MEAN = 1e-4  # of the standard deviation: below it a mean is rounding
ROUND = 1.1
SQUARE = 1 / 1.1

_PIECE = re.compile(
    r"""
    \\ (?P<escaped> [()\[\]\\]? )                       # \( is a parenthesis; a backslash before anything else goes
  | : \s* (?P<weight> [+-]? (?:\d+\.?\d*|\.\d+) ) \s* \)  # the end of (x:1.3)
  | (?P<bracket> [()\[\]] )
  | (?P<text> : | [^\\()\[\]:]+ )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_CLOSES = {")": ("(", ROUND), "]": ("[", SQUARE)}


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into texts and their weights.

    (x) is 1.1, ((x)) 1.21, (x:1.3) 1.3, [x] 1/1.1; a backslash before ( ) [ ] or itself makes it plain. A bracket
    left open weighs everything after it, one that closes nothing is plain text. BREAK, a word by itself, comes out as
    `BREAK`. Neighbours of equal weight are joined; an empty prompt is [("", 1.0)].
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where the brackets still open began, each kind by itself

    def weigh(start: int, factor: float) -> None:
        pieces[start:] = [piece if piece == BREAK else (piece[0], piece[1] * factor) for piece in pieces[start:]]

    for match in _PIECE.finditer(prompt):
        kind, bracket = match.lastgroup, match["bracket"]
        if kind == "escaped":
            pieces.append((match["escaped"], 1.0))
        elif bracket in opened:
            opened[bracket].append(len(pieces))
        elif kind == "weight" and opened["("]:
            weigh(opened["("].pop(), float(match["weight"]))
        elif bracket and opened[_CLOSES[bracket][0]]:
            opening, factor = _CLOSES[bracket]
            weigh(opened[opening].pop(), factor)
        else:
            for i, text in enumerate(_BREAK.split(match[0])):
                pieces += [BREAK, (text, 1.0)] if i else [(text, 1.0)]
    for starts, factor in ((opened["("], ROUND), (opened["["], SQUARE)):
        for start in starts:
            weigh(start, factor)
    return _joined(pieces) or [("", 1.0)]


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if (text, weight) == BREAK:
            joined.append(BREAK)
        elif text and joined and joined[-1] != BREAK and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        elif text:
            joined.append((text, weight))
    return joined


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt for a text encoder.

    Attributes:
        ids: int64 [chunks, max_length]: bos, tokens, eos, pad.
        weights: float32 [chunks, max_length]: 1 for bos, eos and pad.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class PromptTokenizer:
    """A tokenizer.json and the special ids around it.

    Args:
        tokenizer: the path of a tokenizer.json, or such a tokenizer opened.
        max_length: tokens a chunk, bos and eos among them (CLIP: 77).
        bos: id before the tokens; None where the model has none (T5).
        eos: id after the tokens.
        pad: id that fills a chunk up.
    """

    def __init__(self, tokenizer: Path | Tokenizer, max_length: int, bos: int | None, eos: int, pad: int) -> None:
        self._tokenizer = _opened(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        self._tokenizer.no_truncation()  # a tokenizer.json may carry both
        self._tokenizer.no_padding()
        self.max_length, self.bos, self.eos, self.pad = max_length, bos, eos, pad
        self._words: dict[int, tuple[int, ...]] = {}  # id of a word of `with_words` -> the ids that it stands for
        self.room = max_length - (1 if bos is None else 2)
        if self.room < 1:
            raise BadInput(
                f"A tokenizer with max_length {max_length} has no room for text.", "Give max_length, 77 for CLIP."
            )

    @classmethod
    def from_folder(cls, folder: Path, *, max_length: int | None = None) -> PromptTokenizer:
        """Open a tokenizer folder as transformers and diffusers write it.

        Reads tokenizer.json, or vocab.json and merges.txt (CLIP's older layout), with tokenizer_config.json and
        special_tokens_map.json.

        Args:
            folder: the tokenizer's folder.
            max_length: tokens a chunk, where it is not the folder's model_max_length.

        Raises:
            BadInput: a file is missing or damaged, or says nothing about the length.
        """
        tokenizer, settings = _from_folder(folder)
        length = settings.get("model_max_length") if max_length is None else max_length
        # transformers writes 1e30 where it knows no limit
        if not isinstance(length, int) or length > 100_000:
            raise BadInput(
                f"{folder} has no usable model_max_length (found {length!r}).",
                "Add it to tokenizer_config.json (CLIP: 77), or pass max_length.",
            )
        ids = {}
        for name in ("bos_token", "eos_token", "pad_token"):
            token = _content(settings.get(name))
            ids[name] = None if token is None else tokenizer.token_to_id(token)
        bos, eos, pad = ids["bos_token"], ids["eos_token"], ids["pad_token"]
        if eos is None or pad is None:
            raise BadInput(
                f"{folder} names no eos_token or pad_token that is in its vocabulary.",
                "Use the model's own tokenizer folder, with tokenizer_config.json.",
            )
        return cls(tokenizer, length, bos, eos, pad)

    def encode(self, prompt: str, *, weights: bool = True) -> PromptTokens:
        """Token ids in as many chunks as the prompt needs, at least one.

        Args:
            prompt: the text; one with at most max_length - 2 tokens is one chunk.
            weights: read the weight syntax of `parse_weights`; else the text is taken as it is.

        Raises:
            BadInput: text that is no Unicode, or a weight without end.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError as exc:
            raise BadInput(
                f"The prompt is not valid Unicode (position {exc.start}).", "Write it as UTF-8 text."
            ) from exc
        chunks: list[list[tuple[int, float]]] = [[]]
        for text, weight in parse_weights(prompt) if weights else [(prompt, 1.0)]:
            if (text, weight) == BREAK:
                chunks.append([])
                continue
            for token in self._tokenizer.encode(text, add_special_tokens=False).ids:
                ids = self._words.get(token, (token,))
                # the ids that a word stands for stay together where they can
                if len(chunks[-1]) + (len(ids) if len(ids) <= self.room else 1) > self.room:
                    chunks.append([])
                for one in ids:
                    if len(chunks[-1]) == self.room:
                        chunks.append([])
                    chunks[-1].append((one, weight))
        if len(chunks) > 1 and not chunks[-1]:
            chunks.pop()
        return self._framed(chunks)

    @property
    def json(self) -> dict[str, Any]:
        """The tokenizer.json."""
        return dict(json.loads(self._tokenizer.to_str()))

    def with_words(self, words: Mapping[str, Sequence[int]]) -> PromptTokenizer:
        """The same tokenizer with new words, each of which becomes these ids; this one stays as it is.

        A word that begins and ends with a letter or digit is found where it stands alone, any other within others too.
        Case counts as little as in the rest of a prompt.

        Raises:
            BadInput: the vocabulary has such a word already.
        """
        from tokenizers import AddedToken, Tokenizer

        copy = Tokenizer.from_str(self._tokenizer.to_str())
        made = PromptTokenizer(copy, self.max_length, self.bos, self.eos, self.pad)
        made._words |= self._words
        for word, ids in words.items():
            known = (word, word.lower(), f"{word.lower()}</w>")  # CLIP marks the end of a word so
            if not word.strip() or any(copy.token_to_id(one) is not None for one in known):
                raise BadInput(f"The vocabulary has the word {word!r} already.", "Give another word for it.")
            alone = bool(re.fullmatch(r"\w(.*\w)?", word, re.DOTALL))
            copy.add_tokens([AddedToken(word, single_word=alone, normalized=True)])
            made._words[int(copy.token_to_id(word) or 0)] = tuple(ids)  # it was just added
        return made

    def _framed(self, chunks: list[list[tuple[int, float]]]) -> PromptTokens:
        ids = np.full((len(chunks), self.max_length), self.pad, np.int64)
        weights = np.ones((len(chunks), self.max_length), np.float32)
        start = 0 if self.bos is None else 1
        for row, chunk in enumerate(chunks):
            end = start + len(chunk)
            if self.bos is not None:
                ids[row, 0] = self.bos
            ids[row, start:end] = [token for token, _ in chunk]
            ids[row, end] = self.eos
            with np.errstate(over="ignore"):  # checked below
                weights[row, start:end] = [weight for _, weight in chunk]
        if not np.isfinite(weights).all():
            raise BadInput("A weight in the prompt is too large.", "Use weights near 1, such as (fox:1.3).")
        return PromptTokens(ids, weights)


def fill_chunks(tokens: PromptTokens, chunks: int, tokenizer: PromptTokenizer) -> PromptTokens:
    """The prompt with at least `chunks` chunks, those that it lacks being the empty prompt's."""
    missing = chunks - len(tokens.ids)
    if missing <= 0:
        return tokens
    empty = tokenizer.encode("", weights=False)
    return PromptTokens(
        np.concatenate([tokens.ids, np.repeat(empty.ids, missing, axis=0)]),
        np.concatenate([tokens.weights, np.repeat(empty.weights, missing, axis=0)]),
    )


def apply_weights(hidden: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Weigh a text encoder's output as AUTOMATIC1111's "Original" emphasis does.

    Each token's vector is multiplied by its weight, then each chunk is scaled so that its mean is what it was. A chunk
    whose weights are all 1 keeps its very bits.

    Args:
        hidden: float32 [chunks, tokens, dim], the encoder's output.
        weights: float32 [chunks, tokens].
    """
    out = hidden.copy()
    for chunk in np.flatnonzero((weights != 1).any(axis=1)):
        weighed = hidden[chunk] * weights[chunk, :, None]
        before, after = hidden[chunk].mean(dtype=np.float64), weighed.mean(dtype=np.float64)
        # a mean that is nothing but rounding (an encoder that ends in a plain layer norm) says nothing about scale
        telling = min(abs(before), abs(after)) > NO_MEAN * hidden[chunk].std(dtype=np.float64)
        out[chunk] = weighed * np.float32(before / after) if telling else weighed
    return out


def join_chunks(hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [chunks, tokens, dim] -> [1, chunks * tokens, dim]."""
    return hidden.reshape(1, -1, hidden.shape[-1])


def write_tokenizer_json(folder: Path, target: Path) -> None:
    """Write the tokenizer.json of a folder that has CLIP's vocab.json and merges.txt only.

    Raises:
        BadInput: the folder's files are missing or damaged.
        DiskError: `target` cannot be written.
    """
    text = _from_folder(folder)[0].to_str(pretty=True)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise DiskError(
            f"{target} could not be written: {exc.strerror}.", "Free space, or use another folder."
        ) from exc


def _from_folder(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The folder's tokenizer with its special tokens marked, and its settings."""
    config = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        # Stable Diffusion 2 depends on this order: its map says pad "!" and its config says pad "<|endoftext|>"
        config |= _json(folder / "special_tokens_map.json")
    clip = str(config.get("tokenizer_class", "CLIPTokenizer")).startswith("CLIP")
    if clip:
        defaults = {name: "<|endoftext|>" for name in ("unk_token", "eos_token", "pad_token")}
        config = defaults | {"bos_token": "<|startoftext|>"} | config
    if (folder / "tokenizer.json").is_file():
        tokenizer = _opened(folder / "tokenizer.json")
    elif clip and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _clip_tokenizer(folder, config)
    else:
        raise BadInput(
            f"{folder} has neither tokenizer.json nor CLIP's vocab.json and merges.txt.",
            "Use the model's own tokenizer folder.",
        )
    _mark_special(tokenizer, config, _json(folder / "added_tokens.json"))
    return tokenizer, config


def _clip_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """CLIP's byte-level BPE (openai/CLIP, simple_tokenizer.py), its text cleaning as in transformers' CLIPTokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    bos, eos = str(_content(config["bos_token"])), str(_content(config["eos_token"]))
    try:
        model = BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=str(_content(config["unk_token"])),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    except Exception as exc:  # tokenizers raises bare Exception
        raise _damaged(folder / "vocab.json", exc) from exc
    tokenizer = Tokenizer(model)
    space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    special = "|".join(re.escape(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(f"{special}|{words}"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    bos_id, eos_id = tokenizer.token_to_id(bos), tokenizer.token_to_id(eos)
    if bos_id is None or eos_id is None:
        raise BadInput(f"{folder / 'vocab.json'} lacks {bos} or {eos}.", "Use the model's own tokenizer folder.")
    ends = processors.RobertaProcessing((eos, eos_id), (bos, bos_id), trim_offsets=False, add_prefix_space=False)
    tokenizer.post_processor = ends
    return tokenizer


def _mark_special(tokenizer: Tokenizer, config: Mapping[str, Any], legacy: Mapping[str, int]) -> None:
    """Let special and added tokens be found in the text whole, as transformers does.

    It matters in prompts: where "!" is the padding (SDXL's second encoder), "wow!!" holds two padding ids.
    """
    from tokenizers import AddedToken

    special = [config.get(f"{name}_token") for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    names = {_content(token) for token in special}
    decoder = config.get("added_tokens_decoder") or {}
    listed = [decoder[key] for key in sorted(decoder, key=int)]
    legacy_tokens = [{"content": token, "special": token in names} for token in sorted(legacy, key=lambda t: legacy[t])]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found: dict[str, AddedToken] = {}
    for tokens in ([*listed, *legacy_tokens], special):
        for token in tokens:  # among the special ones the last to name a text says how it is matched
            content = _content(token)
            if content is None or content in known:
                continue
            flags = token if isinstance(token, Mapping) else {}
            is_special = content in names or bool(flags.get("special"))
            options = {key: bool(flags.get(key, False)) for key in ("single_word", "lstrip", "rstrip")}
            normalized = bool(flags.get("normalized", not is_special))
            found[content] = AddedToken(content, special=is_special, normalized=normalized, **options)
        known |= found.keys()
    tokenizer.add_tokens(list(found.values()))


def _content(token: Any) -> str | None:
    """A token is written as its text, or as a mapping with its text and how it is matched."""
    return token.get("content") if isinstance(token, Mapping) else token


def _opened(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # tokenizers raises bare Exception
        raise _damaged(path, exc) from exc


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _damaged(path: Path, exc: Exception) -> BadInput:
    return BadInput(f"{path} cannot be read: {exc}.", "Copy the model's tokenizer folder again.")
