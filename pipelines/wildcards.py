"""Prompts with blanks: `a __colour__ car` draws one line of colour.txt for each picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..core.errors import BadInput, UsageError
from .generation import Generation
from .hooks import Hook

_BLANK = re.compile(r"__([\w-]+?(?:/[\w-]+?)*)__")  # the shortest: __a__-__b__ is two
_DEPTH = 8  # a line may hold blanks itself


class Wildcards(Hook):
    """Fills each `__name__` of a prompt with a line of folder/name.txt, chosen by the picture's own seed.

    So a picture can be made again from its seed; what was chosen stands in its parameters as the prompt.
    """

    options: ClassVar[Mapping[str, str]] = {"folder": "of text files, one choice a line"}

    def __init__(self, given: Mapping[str, str]) -> None:
        super().__init__(given)
        if "folder" not in given:
            raise UsageError("The hook wildcards needs its folder.", "Give wildcards:folder=DIR.")
        self._folder = Path(given["folder"])
        if not self._folder.is_dir():
            raise BadInput(f"{self._folder} is no folder.", "Give the folder of the text files.")
        self._lines: dict[str, list[str]] = {}

    def before(self, request: Generation) -> Generation:
        """The request with its blanks filled.

        Raises:
            BadInput: there is no such file, it holds no line, or the lines' own blanks never end.
        """
        prompts = [self._filled(p, s) for p, s in zip(request.prompts, request.seeds, strict=True)]
        return replace(request, prompts=tuple(prompts))

    def _filled(self, prompt: str, seed: int) -> str:
        choices = np.random.default_rng(seed)
        for _ in range(_DEPTH):
            if not _BLANK.search(prompt):
                return prompt
            prompt = _BLANK.sub(lambda found: str(choices.choice(self._choices(found[1]))), prompt)
        raise BadInput(f"The blanks of {prompt[:80]!r} do not end.", "Look for lines that name each other.")

    def _choices(self, name: str) -> list[str]:
        if name not in self._lines:
            path = self._folder / f"{name}.txt"
            try:
                lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as exc:
                raise BadInput(
                    f"The blank __{name}__ has no list: {path} cannot be read ({exc}).", "Write one choice a line."
                ) from exc
            self._lines[name] = [line for line in lines if line and not line.startswith("#")]
        if not self._lines[name]:
            raise BadInput(f"{self._folder / name}.txt holds no line.", "Write one choice a line.")
        return self._lines[name]
