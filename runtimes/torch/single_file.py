"""Components of a single checkpoint as diffusers' own single-file loader reads them: what its export is proved against.

The library maps the original names itself, so a name that the exporter mistook shows in the numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ...core.errors import BadArtifact
from .modules import kind_named, no_bars, quiet_imports


def load_single_file(kind: str, file: Path, config_path: Path, config: Mapping[str, Any]) -> torch.nn.Module:
    """The wrapped module with its weights of `file`, in float32.

    Args:
        file: a .safetensors file in the original layout, or a .gguf file.
        config_path: the component's config.json, in a diffusers folder without weights; `config`: its content.

    Raises:
        BadArtifact: the library finds no such component in the file, or not all of it.
    """
    known = kind_named(kind)
    folder, name = config_path.parent.parent, config_path.parent.name
    with no_bars(), quiet_imports(), _errors_only():
        cls = known.load_class(config)
        if known.library == "diffusers":
            given: dict[str, Any] = {"torch_dtype": torch.float32}
            if file.suffix == ".gguf":
                from diffusers import GGUFQuantizationConfig

                given["quantization_config"] = GGUFQuantizationConfig(compute_dtype=torch.float32)
            module = cls.from_single_file(str(file), config=str(folder), subfolder=name, local_files_only=True, **given)
        else:
            module = _text_encoder(cls, file, folder, name)
    lost = sorted(n for n, p in module.named_parameters() if p.is_meta)
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise BadArtifact(f"{file} lacks {', '.join(lost[:3])}{more}.", "Download the file again, whole.")
    return known.wrap(module.eval())


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """diffusers warns of casts that change nothing here, for everything is float32."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _text_encoder(cls: Any, file: Path, folder: Path, name: str) -> Any:
    from diffusers.loaders import single_file_utils as library

    checkpoint = library.load_single_file_checkpoint(str(file), local_files_only=True)
    t5 = cls.__name__.startswith("T5")
    make = library.create_diffusers_t5_model_from_checkpoint if t5 else library.create_diffusers_clip_model_from_ldm
    return make(
        cls, checkpoint=checkpoint, subfolder=name, config=str(folder), torch_dtype=torch.float32, local_files_only=True
    )
