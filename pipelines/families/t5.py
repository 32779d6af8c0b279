"""T5 text encoders (Raffel et al., arXiv 1910.10683): a prompt in, the states of a fixed number of tokens out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...runtimes.base import Session
from ..prompt import PromptTokenizer, apply_weights
from .base import FloatArray, as_inputs, check_finite

_BREAK = re.compile(r"\bBREAK\b")


def t5_rows(
    sessions: Mapping[str, Session], encoder: str, tokenizer: PromptTokenizer, prompts: Sequence[str]
) -> FloatArray:
    """The states of every prompt, each prompt encoded once however often it comes.

    As diffusers' `_get_t5_prompt_embeds`: padded to the tokenizer's `max_length`, attended to without a mask, and cut
    there, for the denoiser was trained with that many tokens. Weights of words, as in (red:1.3), change the states; a
    BREAK, which is for CLIP's chunks, is left out.

    Args:
        encoder: the component's name.
        tokenizer: its `max_length` is how many states there are.

    Returns:
        float32 [n, max_length, dim].
    """
    done: dict[str, FloatArray] = {}
    session = sessions[encoder]
    for prompt in prompts:
        if prompt in done:
            continue
        tokens = tokenizer.encode(_BREAK.sub(" ", prompt))
        out = session.run(as_inputs(session, {"input_ids": tokens.ids[:1]}))
        hidden = out["last_hidden_state"].astype(np.float32, copy=False)
        check_finite(encoder, hidden, "of a prompt")
        done[prompt] = apply_weights(hidden, tokens.weights[:1])
    return np.concatenate([done[prompt] for prompt in prompts])


def t5_notes(tokenizer: PromptTokenizer, prompts: Sequence[str]) -> tuple[str, ...]:
    """One line for each prompt that `t5_rows` does not read to its end."""
    notes = []
    for prompt in dict.fromkeys(prompts):
        tokens = tokenizer.encode(_BREAK.sub(" ", prompt)).ids
        if len(tokens) > 1:
            ends = len(tokens) - 1  # each chunk ends with a token of its own
            cut = int((tokens[1:] != tokenizer.pad).sum()) - ends
            notes.append(
                f"T5 reads {tokenizer.max_length - 1} tokens: the last {cut} of {prompt[:40]!r}... are left out"
            )
    return tuple(notes)
