"""Which parts of a model lose most in a recipe: each is rounded alone, and what comes out is held against float32.

Run as `python -m vitrify.bench.tune.sensitivity ARTIFACT RECIPE [CALIBRATION]`; prints one JSON object, part -> noise.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.artifact import Artifact, Component
from ...core.errors import BadInput
from ...core.tensors import Array
from ...pipelines.load import family_of, pipeline_of
from ...pipelines.pictures_in import made_up
from ...proof.numeric import open_component
from ...proof.quality import stand_in
from ...quant.recipes import Recipe, recipe
from ...runtimes.base import Session
from ..matrix import task_of
from ..spec import CLASSIFY

SAMPLES = 16  # to calibrate with: which parts are sensitive shows with few
STEPS = 8
_PROMPT, _SEED = "a red apple", 0
# a block of a UNet, a layer of a transformer; what is in none of them is a part of its own kind
_PARTS = re.compile(
    r"((?:down_blocks|up_blocks|transformer_blocks|single_transformer_blocks|joint_transformer_blocks)\.\d+\.|mid_block\."
    r"|(?:block|layer|layers|blocks|stages)\.\d+\.)"
)
_OF_FLOAT32 = 1e-12  # relative noise below which nothing was rounded


def part_of(layer: str) -> str:
    """The part that a layer belongs to, as a pattern for a recipe's `keep`: "up_blocks.1." or "encoder.layer.3."."""
    found = _PARTS.search(layer)
    if found is None:
        first, dot, _ = layer.removesuffix(".weight").partition(".")
        return first + dot
    before = layer[: found.start()].rstrip(".").rpartition(".")[2]
    return f"{before}.{found[1]}" if before and found[1].startswith(("block", "layer", "stages")) else found[1]


def parts_of(component: Component, wanted: Recipe) -> dict[str, list[str]]:
    """Part -> the layers in it that the recipe rounds."""
    import onnx_ir as ir

    from ...export.quantize import external_weights, find_layers

    model = ir.load(component.graph_path)
    found: dict[str, list[str]] = {}
    for layer in find_layers(model, dict(external_weights(model, component)), wanted):
        found.setdefault(part_of(layer.weight), []).append(layer.weight.removesuffix(".weight"))
    return found


def measure_parts(artifact: Artifact, wanted: Recipe, calibration: Path | None = None) -> dict[str, float]:
    """The noise that each part makes when it alone is rounded, as a share of the answer's power.

    Of a diffusion pipeline the answer is the latents after eight steps; of a classifier the logits. Noises of parts
    add up, for they are small and hardly depend on each other.

    Args:
        artifact: exported, in float32. wanted: a recipe for onnx.

    Raises:
        BadInput: nothing to round, or nothing to calibrate with.
    """
    from ...export.calibrate import record_inputs
    from ...export.compile import CompileJob

    names = [n for n in artifact.components if wanted.applies_to(n)]
    samples = record_inputs(artifact, names, min(wanted.samples, SAMPLES), calibration) if wanted.calibrated else {}
    noise: dict[str, float] = {}
    with _opened(artifact) as answer:
        exact = answer({})
        for name in names:
            component = artifact.components[name]
            parts = parts_of(component, wanted)
            for part in parts:
                others = tuple(p for p in parts if p != part)
                alone = replace(wanted, keep=(*wanted.keep, *others))
                with tempfile.TemporaryDirectory(prefix="vitrify-part-") as side:
                    job = CompileJob(artifact, Path(side) / "none", recipe=alone, verify=False)
                    try:
                        made = job.quantized(component, samples.get(name, []), Path(side))
                    except BadInput:
                        continue  # it shares its layers with a part that is kept
                    session = open_component(made)
                    try:
                        given = answer({name: session})
                    finally:
                        session.close()
                power = float(np.square(exact).mean()) or 1.0
                noise[part] = float(np.square(given - exact).mean()) / power
    return {part: value for part, value in noise.items() if value > _OF_FLOAT32}


@contextmanager
def _opened(artifact: Artifact) -> Iterator[Callable[[Mapping[str, Session]], Array]]:
    """What an artifact answers with some of its sessions replaced."""
    family = family_of(artifact)
    names = [name for name in (*family.components, *family.optional) if name in artifact.components]
    sessions = {name: open_component(artifact.components[name]) for name in names}
    try:
        yield lambda replaced: _answer(artifact, pipeline_of(artifact, {**sessions, **replaced}))
    finally:
        for session in sessions.values():
            session.close()


def _answer(artifact: Artifact, pipeline: Any) -> Array:
    if task_of(artifact) == CLASSIFY:
        from PIL import Image

        rng = np.random.default_rng(_SEED)
        small = rng.integers(0, 256, (16, 24, 32, 3), dtype=np.uint8)
        pictures = [Image.fromarray(one).resize((256, 192), Image.Resampling.BICUBIC) for one in small]
        answers = pipeline.classify(pictures, top_k=None, function="none")
        return np.array([[one["score"] for one in sorted(a, key=lambda o: o["label"])] for a in answers])
    latents: list[Array] = []
    height, width = pipeline.settings["size"]
    pipeline.generate(
        _PROMPT,
        steps=STEPS,
        seed=_SEED,
        width=width,
        height=height,
        scheduler=stand_in(pipeline.settings["scheduler"]),
        on_step=lambda step: latents.append(np.array(step.latents)),
        **made_up(pipeline.settings["tasks"], (height, width)),
    )
    return latents[-1]


def parts_to_keep(noise: Mapping[str, float], decibels: float) -> list[str]:
    """The fewest parts, the noisiest first, without whose noise the whole is lower by `decibels`; all where none do."""
    ranked = sorted(noise, key=lambda part: -noise[part])
    total = sum(noise.values())
    allowed = total * 10 ** (-decibels / 10)
    kept: list[str] = []
    for part in ranked:
        if total <= allowed:
            break
        kept.append(part)
        total -= noise[part]
    return kept


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (2, 3):
        print("usage: python -m vitrify.bench.tune.sensitivity ARTIFACT RECIPE [CALIBRATION]", file=sys.stderr)
        return 2
    calibration = Path(arguments[2]) if len(arguments) == 3 else None
    found = measure_parts(Artifact.load(Path(arguments[0])), recipe(arguments[1]), calibration)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
