"""One export: a model's folder or hub id in, a proved artifact out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.artifact import NOT_RUN, Artifact, Component
from ..core.cache import Cache
from ..core.dtypes import NAMES
from ..core.errors import BadInput, ProofFailed, UsageError
from ..core.machine import installed
from ..core.progress import Event, Report, silent
from ..core.publish import can_link, published
from ..core.registry import load_runtime
from ..core.safetensors_header import TensorEntry
from ..proof.evidence import Evidence, keep_pictures
from ..proof.numeric import NUMERIC_LIMIT, prove_numbers
from ..proof.weights import FileHashes, prove_weights
from ..quant.recipes import recipe
from .bound import entries_for
from .changed import Changes
from .graphs import graph_for
from .hub import fetch, is_hub_id
from .layout import write_layout
from .libraries import export_libraries
from .link import link_weights
from .prompt_part import prompt_parts
from .provenance import built_files, new_artifact
from .reference import reference_artifact
from .single_file.source import open_single_file
from .source import Source, SourceComponent, control_settings, open_source, with_residuals
from .step_cache import cut_in_place, denoiser_of
from .swap import entries_by_name, graph_from_artifact


@dataclass(frozen=True)
class Exported:
    """What an export did. notes: one line each for what a user may want to know, such as a reused graph."""

    artifact: Artifact
    notes: list[str]


def find_source(
    given: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    config: str | None = None,
    prediction_type: str | None = None,
    report: Report = silent,
) -> Source:
    """Open a folder or a single checkpoint, or fetch what is needed of a hub id and open that.

    Args:
        config, prediction_type: of a single checkpoint, see `open_single_file`.

    Raises:
        BadInput: see `open_source`, `open_single_file` and `fetch`.
        UsageError: an option of single checkpoints for another source.
    """
    single = Path(given).is_file()
    for option, value in (("--config", config), ("--prediction-type", prediction_type)):
        if value is not None and not single:
            raise UsageError(f"{option} is for single checkpoints, and {given} is none.", "Leave it out.")
    if not is_hub_id(given):
        if revision is not None:
            raise BadInput(f"{given} is a path; a revision belongs to a hub id.", "Leave --revision out.")
        if single:
            if variant is not None:
                raise UsageError(f"{given} is a file; a variant is of a folder's files.", "Leave --variant out.")
            return open_single_file(Path(given), given=given, config=config, prediction_type=prediction_type)
        return open_source(Path(given), given=given, variant=variant)
    return hub_source(given, revision=revision, variant=variant, token=token, offline=offline, report=report)


def hub_source(
    repo_id: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    report: Report = silent,
) -> Source:
    """Fetch what is needed of a hub id and open that, whatever lies here under that name.

    Raises:
        BadInput: see `open_source` and `fetch`.
    """
    fetched = fetch(repo_id, revision=revision, variant=variant, token=token, offline=offline, report=report)
    return open_source(fetched.folder, given=repo_id, revision=fetched.revision, variant=variant)


@dataclass
class ExportJob:
    """An export with its settings.

    verify: True proves the numbers always, False never, None where that needs less than 1 GB.
    graphs: an artifact of the same architecture whose graphs are taken; None traces them or takes them from the cache.
    control: its denoiser shall take a ControlNet's residuals.
    """

    source: Source
    target: Path
    verify: bool | None = None
    replace: bool = False
    report: Report = silent
    cache: Cache | None = None
    graphs: Artifact | None = None
    control: bool = False

    @export_libraries()
    def run(self) -> Exported:
        """Export every component, prove, and publish.

        Raises:
            BadInput, DiskError, Busy: nothing was published.
            ProofFailed: the artifact would not compute what its source does; nothing was published.
            MissingDependency: the `export` or the `onnx` extra is not installed.
        """
        if self.graphs is None:
            load_runtime("onnx")  # every new graph is proved on it, after minutes of tracing
        try:
            return self._run(self.cache or Cache())
        except ProofFailed as exc:
            raise ProofFailed(exc.what, f"Nothing was published. {exc.fix}") from exc

    def _run(self, cache: Cache) -> Exported:
        hashes = FileHashes()
        if self.control:
            self.source = with_residuals(self.source)
        with published(self.target, replace=self.replace) as root:
            pipeline, notes = write_layout(self.source, root)
            notes = [*self.source.notes, *notes]
            if self.control:
                pipeline |= {"control": control_settings(self.source)}
            components: dict[str, Component] = {}
            for number, part in enumerate(self.source.components):
                self.report(Event(f"export {part.spec.name}", number, len(self.source.components), "components"))
                components[part.spec.name] = self._component(part, root, cache, hashes, notes)
            depth = self.source.settings.get("step_cache")
            if isinstance(depth, int):
                components |= cut_in_place(denoiser_of(components), depth)
            if self.source.settings.get("prompt_once"):
                components |= prompt_parts(components, denoiser_of(components).name)
            artifact = self._artifact(root, pipeline, components)
            artifact = self._numeric(artifact, notes)
            artifact.with_hashes().save()
        self.report(Event("done", len(components), len(components), "components"))
        return Exported(Artifact.load(self.target), notes)

    def _component(
        self, part: SourceComponent, root: Path, cache: Cache, hashes: FileHashes, notes: list[str]
    ) -> Component:
        import onnx_ir as ir

        spec = part.spec
        if self.graphs is None:
            graph = graph_for(spec, part.config, cache, self.report)
        else:
            graph = graph_from_artifact(self.graphs, spec, part.config)
        notes.append(f"{spec.name}: {graph.note}")
        side = Path(tempfile.mkdtemp(prefix=".side-", dir=root))
        try:
            tensors = part.tensors(side, self._alone(part, side, notes))
            entries = None
            if self.graphs is not None:
                entries = entries_by_name(self.graphs, spec, graph.model, tensors)
            if entries is None:
                entries = entries_for(spec, part.config, graph.key, tensors, cache, side)
            weights, copied = link_weights(graph.model, entries, root, spec.name if spec.folder else "")
        finally:
            shutil.rmtree(side, ignore_errors=True)
        notes += [f"{path} was copied: this disk cannot link it to the source." for path in copied]
        path = f"{spec.name}/model.onnx" if spec.folder else "model.onnx"
        (root / path).parent.mkdir(exist_ok=True)
        ir.save(graph.model, root / path)
        component = spec.component(part.config, "onnx", path, root, tuple(weights))
        stored = sorted({NAMES.get(e.dtype, e.dtype) for e in entries.values()})
        component = replace(
            component,
            precision=recipe("fp32").to_json() | {"weights": "+".join(stored)},
            requires={"runtime": "onnxruntime>=1.20", "os": None, "compute_capability": None},
            proof={"graph": graph.proof, "weights": NOT_RUN, "numeric": NOT_RUN},
        )
        self.report(Event(f"hash {spec.name}", note=f"{spec.name}: {graph.note}"))
        return prove_weights(component, moved(entries, component), hashes)

    def _alone(self, part: SourceComponent, side: Path, notes: list[str]) -> bool:
        """Whether a single checkpoint cannot be linked, so that a component's tensors are copied out of it."""
        if part.file is None or can_link(part.file, side):
            return False
        notes.append(f"{part.spec.name}: its tensors are copied out of {part.file.name}, which this disk cannot link")
        return True

    def _artifact(self, root: Path, pipeline: Mapping[str, Any], components: Mapping[str, Component]) -> Artifact:
        model = {
            "source": self.source.given,
            "architecture": self.source.architecture,
            "revision": self.source.revision,
            "variant": self.source.variant,
            **self.source.settings,
        }
        inputs = [*built_files(components), pipeline]
        return new_artifact(root, components, inputs, self._command(), model=model, pipeline=pipeline)

    def _command(self) -> list[str]:
        """The command line that makes this artifact again; a hub id at the commit that it was."""
        words = ["vitrify", "export", self.source.given]
        said = {"revision": self.source.revision, "variant": self.source.variant, **self.source.settings}
        for option, value in said.items():
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])] if value else []
        words += [] if self.graphs is None else ["--graph-from", str(self.graphs.root)]
        words += ["--control"] if self.control else []
        words += [] if self.verify is None else ["--verify" if self.verify else "--no-verify"]
        return words

    def _numeric(self, artifact: Artifact, notes: list[str]) -> Artifact:
        need = memory_needed(self.source)
        if self.verify is None and self.graphs is not None and installed("torch") is None:
            notes.append("numeric proof not run (torch is not installed); `vitrify verify` runs it")
            return artifact
        if self.verify is False or (self.verify is None and need > NUMERIC_LIMIT):
            why = f"needs about {need / 1e9:.1f} GB" if self.verify is None else "not asked for"
            notes.append(f"numeric proof not run ({why}); `vitrify verify` runs it")
            return artifact
        reference = reference_artifact(self.source, artifact.pipeline)
        seen = Evidence()
        return keep_pictures(prove_numbers(artifact, reference, self.report, evidence=seen), seen.pairs)


def moved(entries: Mapping[str, TensorEntry], component: Component) -> dict[str, TensorEntry]:
    """The entries, those of a file that was made for this export named where that file lies now."""
    folder = component.graph_path.parent
    return {n: e if e.file.exists() else replace(e, file=folder / e.file.name) for n, e in entries.items()}


def memory_needed(source: Source) -> int:
    """Bytes that the numeric proof needs at most: the reference in float32 and the session's copies."""
    pipeline = [sum(e.elements for e in c.checkpoint.values()) * 4 for c in source.components]
    return 2 * sum(pipeline)


def export_model(
    source: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    verify: bool | None = None,
    replace: bool = False,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    graph_from: str | Path | None = None,
    control: bool = False,
    tome: float | None = None,
    vae: str | Path | None = None,
    preview_vae: str | Path | None = None,
    step_cache: int | None = None,
    prompt_once: bool = False,
    report: Report = silent,
) -> Artifact:
    """Export a diffusers or transformers folder, a single checkpoint or a hub id to the folder `target`.

    Args:
        config, prediction_type: of a single checkpoint, see `open_single_file`.
        graph_from: an artifact of the same architecture, whose graphs are taken instead of traced.
        control: its denoiser shall take a ControlNet's residuals.
        tome: the share of tokens that its UNet merges before self-attention at the highest resolution, 0 to 0.75.
        vae: a folder or hub id, of the VAE to take in place of the source's.
        preview_vae: likewise, of a VAE whose decoder draws previews.
        step_cache: 1 to 3: also a shallow graph, for steps that take deep features of earlier ones.
        prompt_once: also its denoiser in two graphs, so that what the prompt decides is computed once.
        verify: prove the numbers against PyTorch; None: where that needs less than 1 GB.
        replace: an artifact that lies there may be replaced.

    Raises:
        VitrifyError: one of its kinds; nothing half-written is left.
    """
    graphs = None if graph_from is None else Artifact.load(Path(graph_from))
    paths = {"vae": vae, "preview_vae": preview_vae}
    changes = Changes(
        tome, step_cache=step_cache, prompt_once=prompt_once,
        **{n: None if p is None else str(p) for n, p in paths.items()},
    )  # fmt: skip
    changes.check()
    found = find_source(
        str(source),
        revision=revision,
        variant=variant,
        token=token,
        config=configs_from(str(source), config, graph_from),
        prediction_type=prediction_type,
        report=report,
    )
    found = changes.apply(found, token=token, report=report)
    return ExportJob(found, Path(target), verify, replace, report, graphs=graphs, control=control).run().artifact


def configs_from(source: str, config: str | Path | None, graph_from: str | Path | None) -> str | None:
    """Where a single checkpoint's configs come from: where nobody said, from the artifact that has the graphs."""
    if config is None and graph_from is not None and Path(source).is_file():
        return str(graph_from)
    return None if config is None else str(config)
