"""`vitrify demo`: the whole job with the built-in models, and a page about it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.artifact import Artifact
from ..core.errors import BadInput, MissingDependency
from ..core.machine import usable_cores
from ..core.progress import Event, Report
from ..core.publish import published
from .emoji import EXPRESSIONS
from .page import build_page, build_table, summary_lines

MODELS = Path(__file__).parent / "models"
KIND = "vitrify demo"  # how a results.json says that its folder is an earlier demo's
MARKER = "results.json"
NEEDED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxruntime")

STEPS, GUIDANCE, SCHEDULER = 20, 3.0, "dpmpp_2m"
SIZES = (64, 96)
# simple shapes: trained on few pictures of 96 pixels, the model tears the small parts of larger ones
GRID = ("a red apple", "a rainbow", "a red heart", "a rocket", "a sunflower", "the sun with a face")
PAIRS = ("a fox face", "a penguin", "a castle", "a crown", "a ladybug", "a butterfly")
PAIRS_SEED = 10
FACES_SEED = 0


@dataclass
class _Demo:
    """One demo under way.

    root: the temporary folder it is written to. output: where it will lie. results: what results.json gets.
    """

    root: Path
    output: Path
    report: Report
    threads: int
    results: dict[str, Any] = field(default_factory=dict)

    def artifact(self, name: str) -> Artifact:
        return Artifact.load(self.root / "artifacts" / name)


def run_demo(output: Path, report: Report) -> dict[str, Any]:
    """Export, prove, draw, swap, read, time; write pictures, results.json, results.md and index.html to `output`.

    The folder appears whole or not at all; that of an earlier demo is replaced, nothing else ever is.

    Returns:
        What results.json holds, and "lines": a summary for the terminal.

    Raises:
        MissingDependency: the `export` or the `onnx` extra is not installed.
        BadInput: `output` holds something else than a demo.
        ProofFailed, DiskError, Busy: nothing was written.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"The demo exports and runs models, and {', '.join(missing)} is not installed.",
            'pip install "vitrify[export,onnx]"',
        )
    _refuse_other(output)
    started, cpu = time.perf_counter(), _cpu_seconds()
    with published(output, replace=True, marker=MARKER) as root:
        demo = _Demo(root, output.absolute(), report, usable_cores())
        (root / "pictures").mkdir()
        demo.results |= {"kind": KIND, "schema": 1, **_conditions(demo.threads)}
        demo.results["commands"] = _commands(output)
        for stage in (_export, _grid, _swap, _faces, _time):
            before = time.perf_counter()
            stage(demo)
            demo.results.setdefault("stages", {})[stage.__name__[1:]] = round(time.perf_counter() - before, 2)
        demo.results["seconds"] = round(time.perf_counter() - started, 1)
        demo.results["cpu_seconds"] = round(_cpu_seconds() - cpu, 1)
        (root / "results.md").write_text(build_table(demo.results), encoding="utf-8")
        (root / "index.html").write_text(build_page(demo.results), encoding="utf-8")
        (root / MARKER).write_text(json.dumps(demo.results, indent=1) + "\n", encoding="utf-8")
    return {**demo.results, "lines": summary_lines(demo.results)}


def _export(demo: _Demo) -> None:
    """Both models to artifacts, with every proof."""
    from ..export.job import ExportJob, find_source

    demo.results["exports"] = []
    for name in ("emoji-diffusion", "emoji-emotions"):
        demo.report(Event(f"export {name}", note=f"{name}: export and proof"))
        start = time.perf_counter()
        source = find_source(str(MODELS / name))
        done = ExportJob(source, demo.root / "artifacts" / name, verify=True, report=demo.report).run()
        row = _proofs(name, done.artifact)
        demo.results["exports"].append(row | {"seconds": time.perf_counter() - start, "notes": done.notes})


def _grid(demo: _Demo) -> None:
    """One graph at two sizes and two batches; the first picture of a batch is also drawn alone."""
    pipeline = _load(demo, "emoji-diffusion")
    demo.results["grid"] = []
    try:
        for size in SIZES:
            drawn: dict[int, Image.Image] = {}
            for batch in (len(GRID), 1):
                demo.report(Event(f"draw {batch} at {size}x{size}"))
                result = _draw(demo, pipeline, GRID[:batch], size, 0)
                drawn[batch] = result.images[0]
                files = _save(demo, result, f"grid-{size}-batch-{batch}", "emoji-diffusion")
                row = {"size": size, "batch": batch, "seconds": result.timings["total"], "pictures": files}
                demo.results["grid"].append(row)
            a, b = (np.asarray(drawn[n]).astype(int) for n in (len(GRID), 1))
            demo.results["grid"][-1]["differs_from_batch"] = int(np.abs(a - b).max())  # of 255
        demo.results["placement"] = pipeline.placement
    finally:
        pipeline.close()


def _swap(demo: _Demo) -> None:
    """The second fine-tune: merged, exported with the cached graphs, proved, and drawn beside the first."""
    from ..export.reference import reference_artifact
    from ..export.source import open_source
    from ..proof.numeric import prove_numbers
    from .swap import export_apart, merge_model

    demo.report(Event("swap", note="emoji-night: another fine-tune, the same graphs"))
    name, model = "emoji-night", demo.root / "models/emoji-night"
    merged = merge_model(MODELS / "emoji-diffusion", model)
    given = str(demo.output / "models" / name)
    swapped = export_apart(model, demo.root / "artifacts" / name, given)
    demo.report(Event("prove swap", note=f"emoji-night: exported in {swapped['seconds']:.1f} s"))
    start = time.perf_counter()
    source, artifact = open_source(model, given=given), demo.artifact(name)
    artifact = prove_numbers(artifact, reference_artifact(source, artifact.pipeline), demo.report)
    artifact.save()
    swapped |= {"changed": merged.changed, "tensors": merged.tensors, "bytes": merged.bytes}
    swapped |= {"proof_seconds": time.perf_counter() - start, **_proofs(name, artifact), "pairs": []}
    drawn = []
    for which in ("emoji-diffusion", name):
        pipeline = _load(demo, which)
        try:
            demo.report(Event(f"draw with {which}"))
            result = _draw(demo, pipeline, PAIRS, SIZES[0], PAIRS_SEED)
        finally:
            pipeline.close()
        drawn.append(_save(demo, result, f"pair-{which.removeprefix('emoji-')}", which))
    swapped["pairs"] = [{"before": a, "after": b} for a, b in zip(*drawn, strict=True)]
    demo.results["swap"] = swapped


def _faces(demo: _Demo) -> None:
    """Seven faces drawn by one model and read by the other."""
    demo.report(Event("draw and read faces"))
    captions = [caption for caption, _ in EXPRESSIONS.values()]
    painter = _load(demo, "emoji-diffusion")
    try:
        result = _draw(demo, painter, captions, SIZES[0], FACES_SEED)
    finally:
        painter.close()
    files = _save(demo, result, "face", "emoji-diffusion")
    reader = _load(demo, "emoji-emotions")
    try:
        answers = reader.classify(result.images, top_k=3)
    finally:
        reader.close()
    demo.results["faces"] = [
        {"picture": file, "expected": label, "labels": answer, "right": answer[0]["label"] == label}
        for file, label, answer in zip(files, EXPRESSIONS, answers, strict=True)
    ]


def _time(demo: _Demo) -> None:
    """PyTorch beside the runtime, on the same pictures."""
    from ..export.reference import reference_artifact
    from ..export.source import open_source
    from ..pipelines.images import open_image
    from .timing import time_drawing, time_reading

    pairs = {}
    for name in ("emoji-diffusion", "emoji-emotions"):
        artifact = demo.artifact(name)
        pairs[name] = reference_artifact(open_source(MODELS / name), artifact.pipeline), artifact
    options = {**_settings(), "width": SIZES[0], "height": SIZES[0]}
    faces = [open_image(demo.root / f["picture"]["file"]) for f in demo.results["faces"]]
    demo.results["timing"] = {
        "draw": time_drawing(*pairs["emoji-diffusion"], GRID, options, demo.threads, demo.report),
        "read": time_reading(*pairs["emoji-emotions"], faces, demo.threads, demo.report),
    }


def _load(demo: _Demo, name: str) -> Any:
    from ..pipelines.load import load
    from ..runtimes.base import Options

    return load(demo.artifact(name), "cpu", options=Options(threads=demo.threads))


def _draw(demo: _Demo, pipeline: Any, prompts: Sequence[str], size: int, seed: int) -> Any:
    return pipeline.generate(
        list(prompts),
        width=size,
        height=size,
        seed=seed,
        on_step=lambda s: demo.report(Event("step", s.number, s.total, "steps")),
        **_settings(),
    )


def _settings() -> dict[str, Any]:
    return {"steps": STEPS, "guidance": GUIDANCE, "scheduler": SCHEDULER}


def _save(demo: _Demo, result: Any, stem: str, model: str) -> list[dict[str, Any]]:
    """The pictures as PNG files that say how they were made; one {file, prompt, seed, width, height} each."""
    from ..pipelines.images import save_png

    rows = []
    for number, (image, given) in enumerate(zip(result.images, result.parameters, strict=True)):
        file = f"pictures/{stem}-{number + 1}.png"
        save_png(image, demo.root / file, given | {"model": model, "artifact": demo.artifact(model).id})
        rows.append({"file": file} | {k: given[k] for k in ("prompt", "seed", "width", "height")})
    return rows


def _proofs(name: str, artifact: Artifact) -> dict[str, Any]:
    components = {n: dict(c.proof) for n, c in artifact.components.items()}
    return {"name": name, "components": components, "proof": {k: artifact.proof.get(k) for k in ("images", "labels")}}


def _conditions(threads: int) -> dict[str, Any]:
    from ..bench.machine import describe_machine, versions

    settings = {**_settings(), "threads": threads}
    return {
        "settings": settings,
        "machine": describe_machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commands(output: Path) -> list[dict[str, str]]:
    """What repeats each part: {"what", "command"}. Paths as a shell in this folder takes them."""
    import shlex

    def quoted(path: Path) -> str:
        try:
            return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_absolute() else path))
        except ValueError:
            return shlex.quote(str(path))

    model, folder = quoted(MODELS / "emoji-diffusion"), quoted(output / "artifacts/emoji-diffusion")
    reader, faces = quoted(output / "artifacts/emoji-emotions"), quoted(output / "pictures")
    night = quoted(output / "models/emoji-night")
    drawn = f"--steps {STEPS} --guidance {GUIDANCE:g} --scheduler {SCHEDULER}"
    return [
        {"what": "Everything on this page", "command": f"vitrify demo -o {quoted(output)}"},
        {"what": "Export and prove", "command": f"vitrify export {model} -o emoji-diffusion-onnx --verify"},
        {"what": "Prove again", "command": f"vitrify verify {folder}"},
        {"what": "Draw", "command": f'vitrify generate {folder} "{GRID[0]}" --seed 0 {drawn} -o apple.png'},
        {
            "what": "Another size and batch, the same graph",
            "command": f'vitrify generate {folder} "{GRID[1]}" --width 96 --height 64 --batch 4 {drawn} -o rainbow.png',
        },
        {"what": "Export the other fine-tune", "command": f"vitrify export {night} -o emoji-night-onnx --no-verify"},
        {"what": "Read the faces", "command": f"vitrify classify {reader} {faces}/face-*.png --top-k 1"},
    ]


def _refuse_other(output: Path) -> None:
    """Nothing but a demo's folder is ever replaced.

    Raises:
        BadInput: there is something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        found = json.loads((output / MARKER).read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("kind") == KIND:
            return
    except (OSError, ValueError):
        pass
    raise BadInput(f"{output} exists and is not the folder of an earlier demo.", "Choose another folder with -o.")


def _cpu_seconds() -> float:
    """Processor time of this process and of those it waited for."""
    return math.fsum(os.times()[:4])
