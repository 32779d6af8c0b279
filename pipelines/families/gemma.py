"""Gemma as a text encoder: a language model whose last hidden states, one a token, condition a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import BadInput
from ...core.json_file import read_json_object
from ...runtimes.base import Session
from .base import FloatArray, as_inputs, check_finite

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIX = "Copy the model's own tokenizer folder again, with tokenizer.json and tokenizer_config.json."


class GemmaTokenizer:
    """A tokenizer.json with what tokenizer_config.json says of the tokens around a text.

    Args:
        tokenizer: as tokenizer.json has it.
        bos, eos: whether such a token stands before or after each text; both None leaves that to tokenizer.json, as
            transformers does.
        names: "bos_token" and "eos_token" -> the token's text.

    Raises:
        BadInput: no token stands before a text, so that an empty one would be nothing to encode.
    """

    def __init__(self, tokenizer: Tokenizer, bos: bool | None, eos: bool | None, names: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()  # a tokenizer.json may carry both
        tokenizer.no_truncation()
        if bos is not None or eos is not None:
            self._frame(bool(bos), bool(eos), names)
        if not self.ids(""):
            raise BadInput("The tokenizer makes no token of an empty prompt.", _FIX)

    @classmethod
    def from_folder(cls, folder: Path) -> GemmaTokenizer:
        """Open a tokenizer folder as transformers writes it.

        Raises:
            BadInput: a file is missing or damaged, or names a token that is not in the vocabulary.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput(f"{folder} has no tokenizer.json.", _FIX)
        config = read_json_object(folder / "tokenizer_config.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # tokenizers raises bare Exception
            raise BadInput(f"{path} cannot be read: {exc}.", _FIX) from exc
        names = {name: _content(config.get(name), default) for name, default in _TOKENS.items()}
        return cls(tokenizer, config.get("add_bos_token"), config.get("add_eos_token"), names)

    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """The tokens of a text and those around it; at most `limit`, of which the text loses its end.

        Raises:
            BadInput: text that is no Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise BadInput(
                f"The prompt is not valid Unicode (position {exc.start}).", "Write it as UTF-8 text."
            ) from exc
        if limit is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(limit)
        found: list[int] = self._tokenizer.encode(text).ids
        return found

    def _frame(self, bos: bool, eos: bool, names: Mapping[str, str]) -> None:
        from tokenizers.processors import TemplateProcessing

        around = {name: names[name] for name, wanted in (("bos_token", bos), ("eos_token", eos)) if wanted}
        special = []
        for token in around.values():
            number = self._tokenizer.token_to_id(token)
            if number is None:
                raise BadInput(f"The tokenizer's vocabulary has no {token}.", _FIX)
            special.append((token, number))
        framed = [around.get("bos_token"), "$A", around.get("eos_token")]
        template = TemplateProcessing(single=[part for part in framed if part], special_tokens=special)
        self._tokenizer.post_processor = template


_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}  # Gemma's own, where a config names none


def _content(token: Any, default: str) -> str:
    """A token is written as its text, or as a mapping with its text and how it is matched."""
    return str(token.get("content", default) if isinstance(token, Mapping) else token or default)


def gemma_states(sessions: Mapping[str, Session], encoder: str, ids: list[int]) -> FloatArray:
    """The last hidden states of one text, float32 [tokens, dim].

    It is encoded without padding: what stands after a token changes nothing of it, for attention is causal.

    Args:
        encoder: the component's name.
        ids: of `GemmaTokenizer.ids`.
    """
    session = sessions[encoder]
    tokens = np.array([ids], dtype=np.int64)
    out = session.run(as_inputs(session, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}))
    hidden: FloatArray = out["last_hidden_state"][0].astype(np.float32)
    check_finite(encoder, hidden, "of a prompt")
    return hidden
