"""The LoRAs and embeddings of a pipeline that is open: names to files, and the weights that they change."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UsageError
from .components import Components, Overrides
from .embeddings import Embedding, embed, read_embedding
from .families.base import Family
from .generation import Generation, Strengths
from .lora import Lora, LoraUse, find_lora, lora_overrides, read_lora, split_loras


class Adapters:
    """Lays LoRAs on the components of one artifact, and takes them off again.

    A component whose LoRAs change is opened again with its next call; nothing is exported. Without any it computes what
    it did before, bit for bit.

    folder: where names in prompts are looked for; None: only names that were added are known.
    """

    def __init__(self, sessions: Mapping[str, object], family: Family) -> None:
        self._sessions = sessions if isinstance(sessions, Components) else None
        self._family = family
        self._tokenizers = dict(family.tokenizers)
        self._embeddings: list[Embedding] = []
        self._tables: Mapping[str, Overrides] = {}
        self._changes: Mapping[str, Overrides] = {}
        self._files: dict[str, Path] = {}
        self._read: dict[Path, Lora] = {}
        self._laid_on: dict[Path, tuple[float, float]] = {}
        self.folder: Path | None = None

    def add(self, path: str | Path, name: str | None = None) -> str:
        """Read a LoRA's file, and know it by `name`, or its own; nothing is laid on yet.

        Raises:
            BadInput: not a LoRA, or a damaged file.
        """
        path = Path(path)
        self._lora(path)
        name = name or path.stem
        self._files[name] = path
        return name

    def wanted(self, request: Generation) -> Generation:
        """The request without LoRA tags in its prompts; what they name is among its LoRAs.

        Raises:
            BadInput: a tag that cannot be read, or pictures of one call that want different LoRAs.
        """
        prompts, tags = zip(*(split_loras(prompt) for prompt in request.prompts), strict=True)
        if any(sorted(one) != sorted(tags[0]) for one in tags):
            raise BadInput("The prompts of one call name different LoRAs.", "Draw them one after the other.")
        named: dict[str, Strengths] = {name: (strength, text) for name, strength, text in tags[0]}
        return replace(request, prompts=tuple(prompts), loras={**request.loras, **named})

    def lay_on(self, loras: Mapping[str, Strengths]) -> None:
        """Let every component run with these LoRAs, and no others, from its next call on.

        Args:
            loras: name or path -> strength, or the denoiser's and the text encoders'. 0 is none.

        Raises:
            BadInput: no such LoRA, or one for another model.
            UsageError: the sessions are the caller's own, or a component's weights cannot be changed.
        """
        chosen: dict[Path, tuple[float, float]] = {}
        for name, strength in loras.items():
            # a list where it comes from JSON, as from a picture's parameters
            denoiser, text = strength if isinstance(strength, Sequence) else (strength, strength)
            if denoiser or text:
                chosen[self._path(name)] = float(denoiser), float(text)
        if chosen == self._laid_on:
            return
        sessions = self._own()
        self._changes = lora_overrides(
            sessions.parts, [LoraUse(self._lora(path), *pair) for path, pair in chosen.items()]
        )
        self._laid_on = chosen
        self._change(sessions)

    def add_embedding(self, path: str | Path, word: str | None = None) -> str:
        """Teach the text encoders a word from a textual inversion's file, from the next call on.

        Args:
            word: what stands for it in a prompt; None: the one in the file, else the file's name.

        Returns:
            The word.

        Raises:
            BadInput: no embedding, one for another model, or a word that is there already.
            UsageError: the sessions are the caller's own, or a component's weights cannot be changed.
        """
        embedding = read_embedding(path, word)
        if any(one.word == embedding.word for one in self._embeddings):
            raise BadInput(f"The word {embedding.word!r} is taught already.", "Give another word for this file.")
        self._embed([*self._embeddings, embedding])
        return embedding.word

    def forget_embeddings(self) -> None:
        """Take every word off again."""
        self._embed([])

    def _embed(self, embeddings: Sequence[Embedding]) -> None:
        sessions = self._own()
        made = embed(sessions.parts, self._tokenizers, embeddings)
        self._embeddings, self._tables = list(embeddings), made.overrides
        self._family.tokenizers.update(made.tokenizers)
        self._change(sessions)

    def _own(self) -> Components:
        if self._sessions is None:
            raise UsageError(
                "This pipeline has sessions of its own, whose weights cannot be changed.", "Open it with vitrify.load."
            )
        return self._sessions

    def _change(self, sessions: Components) -> None:
        for component in sessions.parts:
            maps: list[Any] = [self._changes.get(component, {}), self._tables.get(component, {})]
            sessions.change(component, ChainMap(*maps))  # which computes nothing: a large model's do not fit in memory

    def _path(self, name: str) -> Path:
        if name in self._files:
            return self._files[name]
        path = Path(name)
        if path.suffix == ".safetensors" and path.is_file():
            return path
        return find_lora(name, self._files if self.folder is None else self.folder)

    def _lora(self, path: Path) -> Lora:
        if path not in self._read:
            self._read[path] = read_lora(path)
        return self._read[path]


def parse_lora(text: str) -> tuple[str, Strengths]:
    """`NAME`, `NAME:0.8` or `NAME:0.5:0.8` (the text encoders' strength, then the denoiser's), NAME a name or a path.

    What is no number belongs to the name: a path may hold colons.
    """
    parts: Sequence[str] = text.split(":")
    numbers: list[float] = []
    name = text
    while len(parts) > 1 and len(numbers) < 2:
        try:
            numbers.insert(0, float(parts[-1]))
        except ValueError:
            break
        parts = parts[:-1]
        name = ":".join(parts)
    if not numbers:
        return name, 1.0
    return name, (numbers[-1], numbers[0])
