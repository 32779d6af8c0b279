"""The model that `--config` names: configs, scheduler and tokenizers that a single checkpoint does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BadInput
from ...core.json_file import read_json_object
from ...core.safetensors_header import STEMS, TensorEntry, open_checkpoint

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("spiece.model", "added_tokens.json"),
)


@dataclass(frozen=True)
class Base:
    """A diffusers folder, or an artifact of one: it keeps the same files, its autoencoder's in two folders."""

    folder: Path
    index: dict[str, Any]

    @property
    def pipeline(self) -> str:
        """diffusers' class."""
        return str(self.index.get("_class_name"))

    def has(self, component: str) -> bool:
        """Whether the pipeline was saved with this component."""
        value = self.index.get(component)
        return isinstance(value, list) and any(value)

    def config(self, component: str) -> dict[str, Any] | None:
        """A component's config.json; None where there is none.

        Raises:
            BadInput: it is no JSON object.
        """
        path = next((f / "config.json" for f in self._folders(component) if (f / "config.json").is_file()), None)
        return None if path is None else read_json_object(path)

    def weights(self, component: str) -> dict[str, TensorEntry] | None:
        """A component's tensors under diffusers' names; None where it has none.

        Raises:
            BadInput: they are damaged.
        """
        for folder in self._folders(component):
            if folder.is_dir() and any(folder.glob("*.safetensors")):
                return open_checkpoint(folder, STEMS)
        return None

    def scheduler(self) -> dict[str, Any]:
        """scheduler_config.json.

        Raises:
            BadInput: there is none.
        """
        return read_json_object(self.folder / SCHEDULER)

    def tokenizer(self, name: str) -> dict[str, bytes]:
        """File name -> content of a tokenizer's folder; empty where there is none."""
        paths = [self.folder / name / file for file in TOKENIZER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def _folders(self, component: str) -> list[Path]:
        return [self.folder / component, self.folder / f"{component}_decoder"]


def open_base(config: str) -> Base:
    """The folder that `--config` names.

    Raises:
        BadInput: it is no folder of a diffusers model.
    """
    folder = Path(config)
    if not (folder / INDEX).is_file():
        has = "holds no model_index.json" if folder.is_dir() else "is no folder"
        raise BadInput(
            f"--config {config} {has}.", "Name a diffusers folder, or an artifact, of the same architecture."
        )
    return Base(folder, read_json_object(folder / INDEX))
