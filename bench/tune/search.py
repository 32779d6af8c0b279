"""The search: measure all candidates a little, prove the best, vary those that pass, measure the last few well."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core.artifact import Artifact
from ...core.errors import BadInput, ProofFailed, VitrifyError
from ...core.progress import Event, Report, silent
from ...core.publish import locked, write_whole
from ...pipelines.load import open_artifact
from ...quant.recipes import recipe
from ..cells import Builder, Built, facts, operations
from ..machine import describe_machine, fingerprint
from ..matrix import Skipped, as_it_is, calibration_for, task_of
from ..measure import CaseFailed, header, measure
from ..preparing import answer_of, record
from ..records import Writer
from ..results import RESULTS, Cell, Results, baseline_of, read_results
from ..runs import case_of, set_aside
from ..spec import Spec
from ..suite_file import Model
from .candidates import candidates, variants
from .goal import Goal
from .sensitivity import parts_to_keep

BEST, OUTCOME, SENSITIVITY = "best", "tune.json", "sensitivity.json"
QUICK_S, WELL_S = 0.5, 2.0
_FIRST, _SECOND, _LAST = 1, 3, 5  # rounds from which on: all candidates, variants, the last few
QUICK_ROUNDS, LAST_ROUNDS = 2, 3
FINALISTS = 4
_PASSING = 5  # artifacts whose options are varied
# how much a candidate may be worse before its options are tried and still win after
_REACH = 1.5
_TRIES = 3  # of keeping more layers of one recipe
_MARGIN_DB = 0.5  # noise is estimated with few steps
_TIMEOUT = 1800.0


@dataclass
class Search:
    """One search with its settings.

    out: the folder for artifacts, results and report. minutes: after which nothing new is compiled, proved or varied;
        None: no limit.
    everything: measure and prove every candidate and variant, to see what the search may have missed.
    """

    model: Model
    goal: Goal
    out: Path
    report: Report = silent
    everything: bool = False
    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)
    builts: dict[str, Built] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _read: Results | None = None
    _whole: Results | None = None
    _artifact: Artifact | None = None

    def run(self) -> Cell:
        """Search, and return the winner as it was measured; `results` has all the others.

        A search that was stopped goes on where it was: artifacts, proofs and samples in `out` are used again where
        they are of this machine, these libraries and this source.

        Raises:
            ProofFailed: no candidate reaches the bar; says how near the nearest came.
            BadInput, CaseFailed: the source cannot be opened or exported, or no candidate can be run.
            Busy: another search or bench writes into `out`.
        """
        if self.out.exists() and not self.out.is_dir():
            raise BadInput(f"{self.out} is a file.", "Give a folder with -o.")
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / RESULTS):
            self._begin()
            self._builder = Builder(self.out, self.report, verify=False)
            self._source = self._builder.source(self.model)
            artifact = self._artifact = open_artifact(self._source.root)
            self.goal = self.goal.of_task(task_of(artifact))
            self._gflop = operations(self._say)
            found = candidates(
                self.model.name, self.model.source, artifact, self.model.axes, self.goal, self.everything
            )
            self.skipped = found.skipped
            for one in found.skipped:
                self._say(f"not tried: {one.spec.how}: {one.what}")
            specs = self._build(found.specs)
            if not specs:
                raise BadInput("No candidate could be made.", "See the lines above; name others with --quant.")
            if self.goal.objective != "disk" or self.goal.limits:  # a file's size is known without running it
                self._measure(specs, _FIRST, QUICK_ROUNDS, QUICK_S)
            if not self._measured(specs):
                raise CaseFailed("No candidate could be run.\n" + "\n".join(self.notes[-3:]), "Run one of them alone.")
            passing = self._passing(specs)
            if not passing:
                raise ProofFailed(self._how_near(specs), "Lower the bar, or allow other recipes or runtimes.")
            widened = self._varied(passing)
            return self._last(widened)

    @property
    def results(self) -> Results:
        """Everything that was measured until now; of what was measured well, that alone."""
        if self._read is None:
            self._whole = read_results(self.out)
            self._read = replace(self._whole, cells=[_settled(cell) for cell in self._whole.cells])
        return self._read

    @property
    def _exported(self) -> Artifact:
        assert self._artifact is not None, "it is opened first"
        return self._artifact

    def best(self) -> Cell | None:
        """The best that is known to reach the bar, as far as the search has come."""
        if self._artifact is None:
            return None
        try:
            known = [c for c in self.results.cells if c.failure is None and c.facts.get("artifact")]
        except BadInput:
            return None
        passing = [c for c in known if self._reaches(c.spec) and math.isfinite(self.goal.value(c))]
        return min(passing, key=self.goal.value, default=None)

    # stages

    def _build(self, specs: Sequence[Spec]) -> list[Spec]:
        """Those whose artifact could be made."""
        made: list[Spec] = []
        for number, spec in enumerate(specs):
            if made and self._late():
                self.skipped.append(Skipped(spec, f"{self.minutes:g} minutes were over.", "Give more --minutes."))
                continue
            self.report(Event(f"compile {spec.how}", number, len(specs), "candidates"))
            try:
                self.builts[spec.name] = self._builder.cell(self.model, self._source, spec)
            except VitrifyError as exc:
                self._say(f"failed: {spec.how}: {exc.what}")
                self.skipped.append(Skipped(spec, exc.what, exc.fix))
            else:
                made.append(spec)
                self._write(spec)
        return made

    def _passing(self, specs: Sequence[Spec]) -> list[Spec]:
        """Up to five that reach the bar, proved from the best on; rounded ones below it get more precision."""
        ranked = sorted(self._measured(specs), key=self._value)
        passing: list[Spec] = []
        for spec in ranked:
            best = min(map(self._value, passing), default=math.inf)
            if not self.everything and passing and (self._value(spec) > _REACH * best or len(passing) >= _PASSING):
                break
            if passing and self._late():
                break
            if math.isinf(self._value(spec)):
                continue  # a limit is broken
            if self._prove(spec):
                passing.append(spec)
            else:
                self._say(f"below the bar: {spec.how}, {self._quality(spec)}")
        best = min(map(self._value, passing), default=math.inf)
        for spec in ranked:
            # with layers kept it can only be slower or larger than it is
            if self._value(spec) < best and not self._reaches(spec) and not self._late():
                raised = self._raised(spec)
                if raised is not None:
                    passing.append(raised)
                    best = min(best, self._value(raised))
        return sorted(passing, key=self._value)

    def _raised(self, spec: Spec) -> Spec | None:
        """The same recipe with its most sensitive parts kept until it reaches the bar; None where it does not."""
        short = self.goal.shortfall(self._cell(spec).quality)
        if recipe(spec.recipe).lossless or not math.isfinite(short):
            return None
        noise = self._noise(spec)
        wanted = short if self.goal.min_psnr is not None else 3.0  # of labels nobody knows how they follow noise
        for _ in range(_TRIES):
            kept = parts_to_keep(noise, wanted + _MARGIN_DB)
            if not kept or len(kept) == len(noise):
                break  # all of it would be kept
            raised = replace(spec, recipe=recipe(_with_kept(spec.recipe, kept)).id)
            self._say(f"{spec.how} misses the bar by {short:.1f}: keeping {', '.join(kept)}")
            if not self._build([raised]):
                return None
            self._measure([raised], _FIRST, QUICK_ROUNDS, QUICK_S)
            if self._prove(raised):
                return raised if math.isfinite(self._value(raised)) else None
            self._say(f"below the bar: {raised.how}, {self._quality(raised)}")
            wanted += max(1.0, min(self.goal.shortfall(self._cell(raised).quality), 6.0))
        return None

    def _varied(self, passing: Sequence[Spec]) -> list[Spec]:
        """The best of those that reach the bar, with all options and threads, measured twice more."""
        chosen = passing if self.everything else passing[:_PASSING]
        specs = list(chosen)
        for spec in chosen:
            for one in variants(spec, self.goal):
                self.builts[one.name] = self.builts[spec.name]
                self._write(one)
                specs.append(one)
        if self.goal.objective == "disk" or (self._late() and not self.everything):
            return list(chosen)
        self._measure(specs, _SECOND, QUICK_ROUNDS, QUICK_S)
        return specs

    def _last(self, specs: Sequence[Spec]) -> Cell:
        """The winner of the last few."""
        finalists = sorted(self._measured(specs), key=self._value)
        baseline = baseline_of(self.results.cells)
        if not self.everything:
            finalists = finalists[:FINALISTS]
        shown = {s.name: s for s in [*([baseline.spec] if baseline else []), *finalists]}
        self._measure(list(shown.values()), _LAST, LAST_ROUNDS, WELL_S)
        cells = [c for c in map(self._cell, finalists) if c.failure is None and math.isfinite(self.goal.value(c))]
        if not cells:
            raise ProofFailed(self._how_near(finalists), "Lower the bar or the limits.")
        return min(cells, key=self.goal.value)

    # what is known

    def _cell(self, spec: Spec) -> Cell:
        return next(cell for cell in self.results.cells if cell.name == spec.name)

    def _measured(self, specs: Iterable[Spec]) -> list[Spec]:
        """Those that have the figure that is made small, and did not fail."""
        cells = {cell.name: cell for cell in self.results.cells}
        return [s for s in specs if cells[s.name].figure(self.goal.metric) and cells[s.name].failure is None]

    def _value(self, spec: Spec) -> float:
        return rank(self._cell(spec), self.goal)

    def _reaches(self, spec: Spec) -> bool:
        cell = self._cell(spec)
        if recipe(spec.recipe).lossless and cell.facts.get("artifact_id") == self._exported.id:
            return True  # it is what the others are held against
        return self.goal.reaches(cell.quality) and not cell.facts.get("failed_proof")

    def _quality(self, spec: Spec) -> str:
        cell = self._cell(spec)
        return cell.quality.label if cell.quality else "not measured"

    def _late(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.started > 60 * self.minutes

    def _how_near(self, specs: Sequence[Spec]) -> str:
        cells = [c for c in self.results.cells if c.failure is None and (c.quality is not None or self.goal.limits)]
        nearest = min(
            cells, key=lambda c: (max(1.0, self.goal.excess(c)), self.goal.shortfall(c.quality)), default=None
        )
        said = f"No candidate of {self.model.name} reaches {self.goal.bar}."
        if nearest is None:
            return f"{said} None of {len(specs)} could be proved."
        missed = "; ".join(self.goal.broken(nearest))
        quality = nearest.quality.label if nearest.quality else "its quality was not proved"
        return f"{said} The nearest is {nearest.spec.how} with {missed or quality}."

    # what is done

    def _write(self, spec: Spec) -> None:
        """The cell's line; of one that was proved meanwhile a newer one."""
        with Writer(self.out / RESULTS) as writer:
            writer.line("cell", facts(spec, self.builts[spec.name], self.out, self._gflop(spec, self._source.root)))
        self._read = None

    def _measure(self, specs: Sequence[Spec], first: int, rounds: int, seconds: float) -> None:
        """Run those that have no samples of these rounds yet; a failure is a line of the results."""
        failed = {c.name for c in self.results.failed}
        assert self._whole is not None
        done = {(s.case, s.round) for c in self._whole.cells for s in c.samples}
        wanted = [
            s for s in specs if s.name not in failed and any((s.name, first + n) not in done for n in range(rounds))
        ]
        if not wanted:
            return
        cases = [case_of(s, self.builts[s.name].root, seconds, 2 if seconds < 1 else 5) for s in wanted]
        try:
            measure(cases, rounds, 0, self.report, self.out / RESULTS, _TIMEOUT, first=first)
        except CaseFailed as exc:
            self._say(f"failed: {exc.what}")
        finally:
            self._read = None

    def _prove(self, spec: Spec) -> bool:
        """Whether it reaches the bar, from the proof in its manifest, which is made where it is not there yet."""
        built = self.builts[spec.name]
        if self._cell(spec).quality is None and not as_it_is(spec, self._exported):
            self.report(Event(f"prove {spec.how}"))
            try:
                answer_of(
                    "vitrify.bench.tune.proving", str(built.root), str(self._source.root), spec.runtime, spec.recipe
                )
            except BadInput as exc:
                self._say(f"not proved: {spec.how}: {exc.what}")
            self._write(spec)
        return self._reaches(spec)

    def _noise(self, spec: Spec) -> dict[str, float]:
        """Part -> noise; kept in `out`, for it takes long."""
        # ONNX has no nf4; what int4 loses most in, it does too
        base = spec.recipe.replace("nf4-weights", "int4-weights")
        kept = self.out / SENSITIVITY
        known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        if base not in known:
            self.report(Event(f"find the sensitive parts in {base}"))
            calibration = calibration_for(spec, self.model.axes.calibration)
            given = [str(self._source.root), base, *([str(calibration)] if calibration else [])]
            try:
                printed = answer_of("vitrify.bench.tune.sensitivity", *given)
            except BadInput as exc:
                self._say(f"the sensitive parts are not known: {exc.what}")
                return {}
            known[base] = json.loads(printed.splitlines()[-1])
            write_whole(kept, json.dumps(known, indent=1))
        return dict(known[base])

    def _begin(self) -> None:
        """Go on with the results that lie there, or set them aside where they are of something else."""
        file, mark = self.out / RESULTS, self.out / "tune.key"
        given = [Path(self.model.source), *filter(None, [self.model.axes.calibration])]
        asked = [self.goal.to_json(), self.everything, asdict(self.model.axes), [_FIRST, _SECOND, _LAST]]
        key = json.dumps([fingerprint(describe_machine()), record([self.model.source], given), asked], default=str)
        if not mark.exists() or mark.read_text() != key:
            for old in (file, self.out / BEST, self.out / OUTCOME):
                set_aside(old)
            (self.out / SENSITIVITY).unlink(missing_ok=True)
            write_whole(mark, key)
        if not file.exists():
            with Writer(file) as writer:
                writer.line("header", header({"tune": self.goal.to_json(), "cases": []}))

    def _say(self, line: str) -> None:
        self.notes.append(line)
        self.report(Event("tune", note=line))


def _settled(cell: Cell) -> Cell:
    """With the samples of the last rounds alone, where there are some: those took longer, and turns with each other."""
    last = [s for s in cell.samples if s.round >= _LAST]
    return replace(cell, samples=last) if last else cell


def rank(cell: Cell, goal: Goal) -> float:
    """What is made small, to rank by: of quick rounds the best one, of the last ones the median.

    What disturbs only adds, and one disturbance must not cost a candidate its place. Where a cell was measured again
    beside its variants, that counts alone.
    """
    if any(s.round >= _LAST for s in cell.samples):
        return goal.value(_settled(cell))
    quick = [s for s in cell.samples if s.round >= _SECOND] or cell.samples
    return min((goal.value(replace(cell, samples=[s])) for s in quick), default=goal.value(cell))


def _with_kept(id: str, parts: Sequence[str]) -> str:
    """The recipe with these parts kept besides those that it keeps."""
    name, _, options = id.partition(":")
    said = [o for o in options.split(",") if o]
    before = next((o.removeprefix("keep=") for o in said if o.startswith("keep=")), "")
    keep = "+".join(filter(None, [before, *parts]))
    return f"{name}:" + ",".join([*(o for o in said if not o.startswith("keep=")), f"keep={keep}"])
