"""The model that all tools read: `python -m vitrify.bench.peers.source MODEL TARGET`.

A Stable Diffusion 1.x in diffusers' layout, as a hub holds one, so that older libraries and other tools read it: the
text encoder's tensors are named `text_model.*`, the tokenizer lies there in both layouts. Its scheduler is the one
that every tool here has: Euler, timesteps spaced evenly from the last to the first (`linspace`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.json_file import read_json_object
from ...core.publish import link_or_copy

ENCODER = Path("text_encoder/model.safetensors")
SCHEDULER = Path("scheduler/scheduler_config.json")
PREFIX = "text_model."
# of stable-diffusion-v1-5; the rest is EulerDiscreteScheduler's default
EULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.39.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "timestep_type": "discrete",
    "use_karras_sigmas": False,
    "steps_offset": 1,  # diffusers rewrites any other; linspace does not use it
}


def make(model: Path, target: Path) -> None:
    """Link what stays, write what differs; `target` must not be there."""
    for file in sorted(f for f in model.rglob("*") if f.is_file()):
        relative = file.relative_to(model)
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        if relative == ENCODER:
            _encoder(file, place)
        elif file.suffix == ".safetensors":
            link_or_copy(file, place)
        else:
            shutil.copyfile(file, place)  # may be written to below
    (target / SCHEDULER).write_text(json.dumps(EULER, indent=2))
    index = read_json_object(target / "model_index.json") | {"scheduler": ["diffusers", EULER["_class_name"]]}
    (target / "model_index.json").write_text(json.dumps(index, indent=2))
    _tokenizer(target / "tokenizer")


def _encoder(file: Path, place: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    if all(name.startswith(PREFIX) for name in tensors):
        link_or_copy(file, place)
        return
    save_file({f"{PREFIX}{name}": value for name, value in tensors.items()}, place, metadata={"format": "pt"})


def _tokenizer(folder: Path) -> None:
    """CLIP's older layout beside tokenizer.json, out of it."""
    model = read_json_object(folder / "tokenizer.json")["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m vitrify.bench.peers.source MODEL TARGET", file=sys.stderr)
        return 2
    make(Path(arguments[0]), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
