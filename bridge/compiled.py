"""A pipeline in memory, compiled in one call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..core.artifact import Artifact, hash_file, is_artifact
from ..core.cache import Cache, key_of
from ..core.errors import BadInput, Busy, UsageError
from ..core.machine import installed
from ..core.progress import Event, Report, silent
from ..export.compile import CompileJob
from ..export.graph import OPSET
from ..export.graphs import FORM
from ..export.job import ExportJob
from ..export.plan_options import PlanOptions
from ..quant.recipes import Recipe, recipe
from ..quant.support import check_target
from ..runtimes.base import Options
from .origin import Origin, scratch_folder
from .origins import PipelineOrigin, controls_of
from .stand_in import is_stand_in
from .wrapped import wrap

KIND = "pipelines"
KEY = "pipeline"  # in a manifest's `built`: what in memory, with which settings, it was made from


@dataclass(frozen=True)
class Settings:
    """How an artifact is made; see `compile_pipeline`. control: its UNet takes a ControlNet's residuals."""

    to: str
    recipe: Recipe
    calibration: Path | None
    verify: bool | None
    replace: bool
    keep_failed: bool
    precision: str
    compute_capability: str | None
    report: Report
    control: bool = False

    @property
    def plain(self) -> bool:
        """Whether the export itself is what is wanted."""
        return self.to == "onnx" and self.recipe.lossless

    def key(self, fingerprint: Mapping[str, Any]) -> str:
        """Of an artifact: whatever would make it another one."""
        return key_of(
            {
                "pipeline": fingerprint,
                "to": self.to,
                "recipe": self.recipe.id,
                "calibration": _content(self.calibration),
                "verify": self.verify,
                "keep_failed": self.keep_failed,
                "precision": self.precision,
                "compute_capability": self.compute_capability,
                "control": self.control,
                "vitrify": installed("vitrify"),
                "form": FORM,
                "opset": OPSET,
            }
        )


def compile_pipeline(
    pipe: Any,
    to: str = "openvino",
    quant: str = "int8-static",
    output: str | Path | None = None,
    *,
    calibration: str | Path | None = None,
    verify: bool | None = None,
    replace: bool = False,
    keep_failed: bool = False,
    precision: str = "float32",
    compute_capability: str | None = None,
    device: str | None = None,
    options: Options | None = None,
    runtime: str | None = None,
    report: Report = silent,
) -> Any:
    """Export, quantize and compile a diffusers pipeline, and let the result run it.

    The artifact is made from what the pipeline has in memory: a fine-tuned or fused UNet as it is now. It is kept in
    the cache, or as `output`, and a pipeline with the same weights and settings gets it from there. A ControlNet
    becomes an artifact of its own, beside `output`, in float32.

    Args:
        pipe: of any class whose model can be exported; see `vitrify export`.
        to, quant, calibration, verify, keep_failed, precision, compute_capability: as `vitrify.compile_model`.
        output: the artifact's folder. None: the cache.
        replace: another artifact that lies there may be replaced.
        device, options, runtime: as `vitrify.load`.

    Returns:
        The same pipeline, compiled. Its `vitrify.artifact` is the artifact.

    Raises:
        BadInput: no diffusers pipeline, or one that cannot be exported.
        UsageError: it is compiled already, has a LoRA that is not fused, or a setting makes no sense.
        ProofFailed: below the recipe's tolerance; the pipeline runs as before.
        VitrifyError: one of its kinds; the pipeline runs as before.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise BadInput(f"{type(pipe).__name__} is no pipeline of diffusers.", "Give one, such as from_pretrained.")
    if any(is_stand_in(component) for component in pipe.components.values()):
        raise UsageError("The pipeline is compiled already.", "Load it again, to compile it with other settings.")
    controls = controls_of(pipe)
    wanted = Settings(
        to, recipe(quant), None if calibration is None else Path(calibration), verify, replace, keep_failed, precision,
        compute_capability, report, bool(controls),
    )  # fmt: skip
    if not wanted.plain:
        check_target(wanted.recipe, to)
    target = None if output is None else Path(output)
    artifact = _artifact(PipelineOrigin(pipe), target, wanted)
    nets = {c.component: _artifact(c, _beside(target, c.component), _float32(wanted)) for c in controls}
    how: dict[str, Any] = {"device": device, "options": options, "runtime": runtime}
    wrap(pipe, artifact, **how)
    for component, net in nets.items():
        wrap(pipe, net, components=[component], **how)
    return pipe


def _beside(target: Path | None, component: str) -> Path | None:
    return None if target is None else target.with_name(f"{target.name}-{component.replace('.', '-')}")


def _float32(wanted: Settings) -> Settings:
    """For a ControlNet, which no recipe knows."""
    return replace(wanted, recipe=recipe("fp32"), calibration=None, control=False)


def _artifact(origin: Origin, target: Path | None, wanted: Settings) -> Artifact:
    """The artifact in its folder or the cache, made where it is not there."""
    key = wanted.key(origin.fingerprint(wanted.report))
    if target is None:
        return _cached(origin, key, wanted)
    if is_artifact(target):
        there = Artifact.load(target)
        if there.built.get(KEY) == key:
            wanted.report(Event("compile", note=f"{target} was made from this pipeline with these settings"))
            return there
    return _made(origin, target, None, key, wanted)


def _cached(origin: Origin, key: str, wanted: Settings) -> Artifact:
    """The cache's artifact: a folder under the model's name, in the entry."""
    cache = Cache()
    found = cache.get(KIND, key)
    if found is not None:
        wanted.report(Event("compile", note=f"{origin.name} with these weights and settings is in the cache"))
    else:
        with ExitStack() as stack:
            try:
                scratch = stack.enter_context(cache.put(KIND, key, exclusive=True))
            except Busy as exc:
                raise Busy("Another process is compiling the same pipeline.", "Wait for it to end.") from exc
            _made(origin, None, scratch, key, wanted)
        found = cache.get(KIND, key)
    if found is None:
        raise BadInput(
            f"The artifact is larger than the cache may be ({cache.limit} bytes, $VITRIFY_CACHE_MAX).",
            "Give it a folder of its own: output=..., or raise VITRIFY_CACHE_MAX.",
        )
    return Artifact.load(next(path for path in found.iterdir() if is_artifact(path)))


def _made(origin: Origin, target: Path | None, folder: Path | None, key: str, wanted: Settings) -> Artifact:
    """The artifact at `target`, or in `folder` under the model's name."""
    with ExitStack() as stack:
        source = stack.enter_context(origin.source(wanted.report))
        place = target or (folder or Path()) / source.name
        at = place if wanted.plain else stack.enter_context(scratch_folder()) / source.name
        export = ExportJob(source, at, wanted.verify, wanted.replace, wanted.report, control=wanted.control)
        made = export.run().artifact
        if not wanted.plain:
            made = CompileJob(
                made, place, wanted.to, wanted.recipe, wanted.calibration, wanted.verify, wanted.replace,
                wanted.keep_failed, PlanOptions().named(wanted.precision, wanted.compute_capability), wanted.report,
            ).run().artifact  # fmt: skip
        made = replace(made, built={**made.built, KEY: key})
        made.save()
        return made


def _content(path: Path | None) -> Any:
    """What a calibration file or folder holds, for a key."""
    if path is None or not path.exists():
        return str(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [(str(file.relative_to(path)), hash_file(file)) for file in files]
