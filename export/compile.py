"""An artifact -> another: its components quantized, and written for the runtime that shall open them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.artifact import MANIFEST, NOT_RUN, Artifact, Component
from ..core.errors import BadInput, NotFinite, ProofFailed, UsageError
from ..core.progress import Event, Report, silent
from ..core.publish import link_or_copy, published
from ..pipelines.control import is_residual
from ..pipelines.prompt_part import PROMPT, STEP, is_cut
from ..pipelines.step_cache import DEEP, SHALLOW
from ..proof.evidence import FOLDER, Evidence, keep_pictures
from ..proof.numeric import NUMERIC_LIMIT, prove_numbers
from ..proof.quality import Tolerance
from ..quant.recipes import Recipe, recipe
from ..quant.support import check
from .calibrate import Recorded, record_inputs
from .libraries import export_libraries
from .plan_options import PlanOptions
from .provenance import built_files, new_artifact

FAILED = "failed"


@dataclass(frozen=True)
class Compiled:
    """What a compilation did. notes: one line each for what a user may want to know."""

    artifact: Artifact
    notes: list[str]


@dataclass
class CompileJob:
    """A compilation with its settings.

    to: onnx, openvino, torch, aotinductor, tensorrt-rtx or tensorrt.
    calibration: a file of prompts or a folder of pictures.
    verify: True compares with `artifact` always, False never, None where that needs less than 1 GB.
    keep_failed: publish also what is below the recipe's tolerance, marked as failed.
    plan: of plans, see `PlanOptions`.
    """

    artifact: Artifact
    target: Path
    to: str = "onnx"
    recipe: Recipe = field(default_factory=lambda: recipe("fp32"))
    calibration: Path | None = None
    verify: bool | None = None
    replace: bool = False
    keep_failed: bool = False
    plan: PlanOptions = field(default_factory=PlanOptions)
    report: Report = silent

    @export_libraries()
    def run(self) -> Compiled:
        """Quantize, convert, prove, publish.

        Raises:
            UsageError: the recipe does not run on that target.
            BadInput: the artifact is compiled already, or there is nothing to calibrate with.
            ProofFailed: quality is below the recipe's tolerance, or a component gives NaN; nothing was published.
            BadInput, DiskError, Busy, MissingDependency: nothing was published.
        """
        given = {c.format for c in self.artifact.components.values()}
        if given != {"onnx"}:
            raise BadInput(
                f"{self.artifact.root} is compiled already ({', '.join(sorted(given))}).",
                "Compile from the artifact that `vitrify export` made, or from the model itself.",
            )
        if self.target.resolve() == self.artifact.root.resolve():
            raise UsageError("The artifact would replace the one that it is made from.", "Give another folder with -o.")
        if self.artifact.root.resolve() in self.target.resolve().parents:
            raise UsageError("The artifact would lie in the one that it is made from.", "Give another folder with -o.")
        if self.to.startswith("tensorrt"):
            self.plan.check(self.to)
        elif self.plan != PlanOptions():
            raise UsageError(f"The options of plans do nothing for {self.to}.", "Leave them out.")
        notes = check(self.recipe, self.to, self.artifact.components)
        if self.recipe.lossless and self.to == "onnx":
            raise UsageError("An artifact in onnx and fp32 is what it is made from.", "Give --to or --quant.")
        for note in notes:
            self.report(Event("compile", note=note))
        with published(self.target, replace=self.replace) as root:
            samples = self._samples()
            self._layout(root)
            components: dict[str, Component] = {}
            for number, (name, component) in enumerate(self.artifact.components.items()):
                self.report(Event(f"compile {name}", number, len(self.artifact.components), "components"))
                if not is_cut(component):  # which comes out of the whole one
                    made_of = self._component(component, samples.get(name, []), root)
                    components |= {one.name: one for one in made_of}
            if self.to == "openvino":
                from .ov_tokenizer import write_ov_tokenizers

                notes += write_ov_tokenizers(root, self.report)
            made = self._numeric(self._artifact(root, components), notes)
            made.with_hashes().save()
        return Compiled(Artifact.load(self.target), notes)

    @export_libraries()
    def prove(self) -> Compiled:
        """Run the numeric proof of what lies at `target`, compiled by such a job, and write it into its manifest.

        Raises:
            ProofFailed: as `run`; what lies there stays as it was.
            BadArtifact, BadInput: it cannot be opened.
        """
        notes: list[str] = []
        proved = self._numeric(Artifact.load(self.target), notes)
        proved.with_hashes().save()
        return Compiled(Artifact.load(self.target), notes)

    def _samples(self) -> Recorded:
        if not self.recipe.calibrated:
            return {}
        names = [n for n in self.artifact.components if self.recipe.applies_to(n)]
        return record_inputs(self.artifact, names, self.recipe.samples, self.calibration, self.report)

    def _layout(self, root: Path) -> None:
        """Every file of the artifact that is no graph and no weight."""
        graphs = {c.graph for c in self.artifact.components.values()}
        weights = {w.path for c in self.artifact.components.values() for w in c.weights}
        for path in sorted(p for p in self.artifact.root.rglob("*") if p.is_file()):
            name = path.relative_to(self.artifact.root).as_posix()
            # the proof of the artifact that it is made from says nothing of this one
            if name not in graphs | weights | {MANIFEST} and not name.startswith(f"{FOLDER}/"):
                link_or_copy(path, root / name)

    def _component(self, component: Component, samples: list[dict[str, Any]], root: Path) -> list[Component]:
        """The component below `root`, and what was cut out of it where the artifact has that."""
        if self.to == "onnx":
            return self._with_cuts(self.quantized(component, samples, root), component)
        if self.to in ("torch", "aotinductor"):
            from .aotinductor import write_package
            from .torch_target import write_torch

            wanted = self.recipe if self.recipe.applies_to(component.name) else None
            if self.to == "torch":
                made = write_torch(component, root, recipe=wanted, report=self.report)
            else:
                made = write_package(component, root, report=self.report)
            return [replace(made, outputs={n: s for n, s in made.outputs.items() if n != DEEP})]
        with tempfile.TemporaryDirectory(prefix=".side-", dir=root) as side:
            if self.recipe.weights == "nf4":
                wanted = self.recipe if self.recipe.applies_to(component.name) else None
                parts, own = self._with_cuts(component, None), wanted
            else:
                parts, own = self._with_cuts(self.quantized(component, samples, Path(side)), component), None
            if self.to == "openvino":
                from .ir import write_ir
                from .ir_shared import share_constants

                folders = [_folder(component), *(part.name for part in parts[1:])]
                whole, *cuts = [
                    write_ir(part, root, recipe=own, folder=folder, report=self.report)
                    for part, folder in zip(parts, folders, strict=True)
                ]
                return [whole, *(share_constants(part, whole) for part in cuts)]
            from .plan import build_plan

            return [build_plan(p, root, flavour=self.to, options=self.plan, report=self.report) for p in parts]

    def _with_cuts(self, made: Component, source: Component | None) -> list[Component]:
        """The component, and the graphs that the artifact has cut out of it, with the same numbers.

        Args:
            source: what `made` was made of, so that it is cut again; None: it is the artifact's own.
        """
        whole, has = [made.name, made.name + SHALLOW], self.artifact.components
        names = [*whole, *(name + kind for name in whole for kind in (PROMPT, STEP))]
        if source is None:
            return [has[name] for name in names if name in has]
        parts = {made.name: made}
        if whole[1] in has:
            from .step_cache import cut_in_place

            parts = cut_in_place(made, int(has[whole[1]].details["step_cache"]["depth"]))
        if made.name + STEP in has:
            from .prompt_part import prompt_parts

            parts |= prompt_parts(parts, made.name)
        return list(parts.values())

    def quantized(self, component: Component, samples: list[dict[str, Any]], root: Path) -> Component:
        """The component below `root`, in ONNX with the recipe's numbers."""
        if not self.recipe.applies_to(component.name):
            for path in (component.graph, *(w.path for w in component.weights)):
                link_or_copy(component.root / path, root / path)
            proof = {**component.proof, "numeric": NOT_RUN}
            return replace(component, root=root, proof=proof)
        if self.recipe.calibrated:
            from .static import quantize_static

            return quantize_static(component, self.recipe, samples, root, self.report)
        if self.recipe.name == "int8-dynamic":
            from .dynamic import quantize_dynamic

            return quantize_dynamic(component, self.recipe, root, self.report)
        from .quantize import quantize_weights

        return quantize_weights(component, self.recipe, root, self.report)

    def _artifact(self, root: Path, components: Mapping[str, Component]) -> Artifact:
        command = ["vitrify", "compile", str(self.artifact.model.get("source")), "--to", self.to]
        command += [] if self.recipe.lossless else ["--quant", self.recipe.id]
        command += [] if self.calibration is None else ["--calibration", str(self.calibration)]
        command += self.plan.arguments()
        source = self.artifact
        # of a hub id, of a single checkpoint, and what the export changed
        for name in ("revision", "variant", "config", "prediction_type", "tome", "vae", "preview_vae", "step_cache"):
            value = source.model.get(name)
            command += [f"--{name.replace('_', '-')}", str(value)] if value else []
        command += ["--prompt-once"] if source.model.get("prompt_once") else []
        if any(is_residual(name) for component in components.values() for name in component.inputs):
            command.append("--control")
        return new_artifact(
            root,
            components,
            [[source.id, self.to, self.recipe.id], *built_files(components)],
            command,
            model=source.model,
            pipeline=source.pipeline,
            evaluation=source.evaluation,
            origin={"id": source.id, "command": source.built.get("command")},
        )

    def _numeric(self, made: Artifact, notes: list[str]) -> Artifact:
        need = 3 * self.artifact.weight_bytes
        if self.to.startswith("tensorrt"):
            notes.append("numeric proof not run: plans run on an NVIDIA GPU alone")
            return made
        if self.verify is False or (self.verify is None and need > NUMERIC_LIMIT):
            why = f"needs about {need / 1e9:.1f} GB" if self.verify is None else "not asked for"
            notes.append(f"numeric proof not run ({why}); `vitrify verify --against {self.artifact.root}` runs it")
            return made
        tolerance, seen = Tolerance.of(self.recipe), Evidence()
        try:
            proved = prove_numbers(made, self.artifact, self.report, tolerance, evidence=seen)
        except (ProofFailed, NotFinite) as exc:
            if not self.keep_failed:
                milder = "" if self.recipe.lossless else "Keep more layers (keep=PATTERN); "
                fix = f"Nothing was published. {milder}--keep-failed publishes it, marked."
                raise ProofFailed(exc.what, fix) from exc
            notes.append(f"FAILED: {exc.what}")
            failed = seen.artifact or made  # the first has the figures that were had before it failed
            proved = replace(failed, proof={**failed.proof, "status": FAILED, "what": exc.what})
        return keep_pictures(proved, seen.pairs)


def _folder(component: Component) -> str:
    """Where the component's graph lies: a classifier's in the artifact's own folder, as Optimum has it."""
    return str(Path(component.graph).parent.as_posix()).removeprefix(".")


def compile_model(
    artifact: str | Path,
    target: str | Path,
    *,
    to: str = "onnx",
    quant: str = "fp32",
    calibration: str | Path | None = None,
    verify: bool | None = None,
    replace: bool = False,
    keep_failed: bool = False,
    precision: str | None = None,
    compute_capability: str | None = None,
    plan: PlanOptions | None = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    control: bool = False,
    tome: float | None = None,
    vae: str | Path | None = None,
    preview_vae: str | Path | None = None,
    step_cache: int | None = None,
    prompt_once: bool = False,
    report: Report = silent,
) -> Artifact:
    """Compile an artifact, or a model that is exported into the cache first, into the folder `target`.

    Args:
        to: onnx, openvino, torch, aotinductor, tensorrt-rtx or tensorrt.
        quant: a recipe's id, such as "int4-weights:group=32".
        calibration: a file of prompts, or a folder of pictures, for the recipes that need some.
        keep_failed: publish also what is below the recipe's tolerance, marked as failed.
        plan: what plans are built with. precision, compute_capability: two of it, by name.
        revision, variant, token, offline: of a hub id.
        config, prediction_type: of a single checkpoint, see `open_single_file`.
        control: of a model: its denoiser shall take a ControlNet's residuals.
        tome, vae, preview_vae, step_cache, prompt_once: of a model: see `export_model`.

    Raises:
        VitrifyError: one of its kinds; nothing half-written is left.
    """
    from .changed import Changes
    from .resolve import artifact_for

    paths = {"vae": vae, "preview_vae": preview_vae}
    changes = Changes(
        tome, step_cache=step_cache, prompt_once=prompt_once,
        **{n: None if p is None else str(p) for n, p in paths.items()},
    )  # fmt: skip
    changes.check()
    found = artifact_for(
        str(artifact),
        revision=revision,
        variant=variant,
        token=token,
        offline=offline,
        config=None if config is None else str(config),
        prediction_type=prediction_type,
        control=control,
        changes=changes,
        report=report,
    )
    return (
        CompileJob(
            found,
            Path(target),
            to,
            recipe(quant),
            Path(calibration) if calibration is not None else None,
            verify,
            replace,
            keep_failed,
            (plan or PlanOptions()).named(precision, compute_capability),
            report,
        )
        .run()
        .artifact
    )
