"""CLIP text encoders: prompts in, one row of states a prompt out; longer prompts in several chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...runtimes.base import Session
from ..prompt import PromptTokenizer, PromptTokens, apply_weights, fill_chunks, join_chunks
from .base import FloatArray, check_finite


def clip_chunks(tokenizers: Iterable[PromptTokenizer], prompts: Sequence[str]) -> int:
    """How many chunks the longest prompt needs with any of these tokenizers.

    They may differ: where "!" is the padding, as of second encoders, "wow!!" is three tokens, not two.
    """
    return max(len(tokenizer.encode(p).ids) for tokenizer in tokenizers for p in dict.fromkeys(prompts))


def clip_rows(
    sessions: Mapping[str, Session],
    encoder: str,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    states: str = "last_hidden_state",
    pooled: str | None = None,
    chunks: int = 1,
) -> tuple[FloatArray, FloatArray]:
    """The states of every prompt, each prompt encoded once however often it comes.

    All get as many chunks as the longest. Weights of words, as in (red:1.3), change the states.

    Args:
        encoder: the component's name.
        states: the output whose rows the denoiser attends to, [chunks, tokens, dim].
        pooled: the output, [chunks, dim], whose first chunk stands for the whole prompt.
        chunks: how many there are at least, as another encoder's prompts may need more; see `clip_chunks`.

    Returns:
        float32 [n, chunks * tokens, dim], and float32 [n, dim] ([n, 0] where `pooled` is None).
    """
    known: dict[str, PromptTokens] = {}
    rows = [known.setdefault(p, tokenizer.encode(p)) for p in prompts]
    chunks = max(chunks, *(len(row.ids) for row in rows))
    done: dict[int, tuple[FloatArray, FloatArray]] = {}
    session = sessions[encoder]
    for row in rows:
        if id(row) in done:
            continue
        tokens = fill_chunks(row, chunks, tokenizer)
        out = session.run({"input_ids": tokens.ids.astype(session.inputs["input_ids"].dtype.value)})
        hidden = out[states].astype(np.float32)
        check_finite(encoder, hidden, "of a prompt")
        first = out[pooled][:1].astype(np.float32) if pooled else np.zeros((1, 0), np.float32)
        done[id(row)] = join_chunks(apply_weights(hidden, tokens.weights)), first
    found = [done[id(row)] for row in rows]
    return np.concatenate([h for h, _ in found]), np.concatenate([p for _, p in found])
