"""The LoRAs that clients may name: the files of the server's folder, and nothing that would be a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..pipelines.generation import Generation
from ..pipelines.hooks import Hook
from ..pipelines.lora import lora_paths, split_loras


def lora_files(folder: Path | None) -> dict[str, Path]:
    """Name -> file, in the names' order, of a folder and those below it as they are now; none without a folder.

    The name is the file's own without its ending. One that two files have stands for neither.
    """
    found: dict[str, list[Path]] = {}
    for path in lora_paths(folder) if folder is not None else ():
        found.setdefault(path.stem, []).append(path)
    return {name: paths[0] for name, paths in sorted(found.items()) if len(paths) == 1}


class ServedLoras(Hook):
    """The last hook of every drawing: whatever came into the prompts by then, only LoRAs of the folder are opened.

    Args:
        folder: of the LoRAs. adapters: of the pipeline that draws.
    """

    def __init__(self, folder: Path | None, adapters: Any) -> None:
        super().__init__({})
        self._folder, self._adapters = folder, adapters

    def before(self, request: Generation) -> Generation:
        """The same request. Raises BadInput for a LoRA that is not served, or a file that is none."""
        tags = [name for prompt in request.prompts for name, *_ in split_loras(prompt)[1]]
        wanted = dict.fromkeys([*request.loras, *tags])
        files = lora_files(self._folder) if wanted else {}
        for name in wanted:
            if name not in files:
                raise BadInput(no_lora(name), names_of(files))
            self._adapters.add(files[name], name)
        return request


def no_lora(name: str) -> str:
    return f"There is no LoRA {name[:80]!r}."


def names_of(files: Mapping[str, Path]) -> str:
    """The fix: which there are."""
    return (
        f"There are: {', '.join(list(files)[:50])}." if files else "The server has none: start it with --lora-folder."
    )
