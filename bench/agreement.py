"""How often `bench compare` is right: identical artifacts, a planted slowdown, a planted loss of quality.

python -m vitrify.bench.agreement --work DIR

Measures, 10 times each: a small suite twice; the suite slowed by 15 %; a model that draws 3 dB worse. Runs that are
whole are kept, so that a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, VitrifyError
from ..core.progress import Event
from .cells import Builder, Built, facts
from .compare import compare
from .compare_quality import QUALITY
from .compare_times import LATENCY
from .differences import Comparison
from .measure import measure
from .noisy import noisy_copy, prove, proven_copy
from .records import Writer
from .results import RESULTS, Results, read_results
from .runs import Job, case_of, prepare
from .slower import environment
from .spec import TEXT2IMG
from .suite_file import Suite, suite_of

MODELS = Path(__file__).parents[1] / "demo" / "models"  # those that the package carries
# a diffusion model and a classifier, each exact and of 4 bits: four cells; docs/bench-compare.md says why of one thread
GIVEN = {"runtime": ["onnx"], "quant": ["fp32", "int4-weights"], "steps": 2, "threads": [1]}
SLOWDOWN, LOSS = 0.15, 3.0
_PSNR = 30.0  # dB of the copy that others are worse than
_SHARE = 0.01  # of noise, to begin the search with


@dataclass
class Tally:
    """Tries of one kind: what was compared, and in which of them it was as it should be.

    metric: the one whose changes are shown.
    """

    what: str
    wanted: str
    metric: str
    found: list[Comparison] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, found: Comparison, right: bool) -> None:
        self.found.append(found)
        self.right.append(right)

    @property
    def changes(self) -> list[float]:
        rows = [d for one in self.found for d in one.differences if d.metric == self.metric]
        return [d.change for d in rows if d.change is not None]

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "wanted": self.wanted,
            "right": sum(self.right),
            "tries": len(self.right),
            "comparisons": [one.to_json() for one in self.found],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts and runs")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10, help="processes a cell in each run")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each of them times calls")
    parser.add_argument("--threads", type=int, default=1, help="of each cell; 0 leaves it to the runtime")
    parser.add_argument("--only", choices=("times", "quality"))
    parser.add_argument("--json", action="store_true", help="every comparison on stdout instead of the table")
    given = parser.parse_args(arguments)
    suite = suite_of(
        [str(MODELS / "emoji-diffusion"), str(MODELS / "emoji-emotions")],
        {**GIVEN, "rounds": given.rounds, "seconds": given.seconds, "threads": [given.threads]},
    )
    try:
        jobs = _jobs(suite, given.work)
        tallies = []
        if given.only != "quality":
            tallies += times(suite, jobs, given.work, given.tries)
        if given.only != "times":
            tallies += quality(jobs, given.work, given.tries)
    except VitrifyError as exc:
        print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the next call goes on from here.", file=sys.stderr)
        return 130
    print(json.dumps([t.to_json() for t in tallies]) if given.json else table(tallies))
    return 0


def times(suite: Suite, jobs: Sequence[Job], work: Path, tries: int) -> list[Tally]:
    """The suite against itself, and against itself slowed down."""
    threads = jobs[0].spec.threads
    folder = work / f"runs-{suite.rounds}x{suite.seconds:g}-threads-{threads}"
    same = Tally("identical artifacts", "no difference in any figure", LATENCY.name)
    slow = Tally(f"every call {SLOWDOWN:.0%} longer", "slower", LATENCY.name)
    planted = environment(work / "plant", SLOWDOWN)
    for number in range(tries):
        first = run(suite, jobs, folder / f"{number}-a")
        second = run(suite, jobs, folder / f"{number}-b")
        slowed = run(suite, jobs, folder / f"{number}-slower", planted)
        found = compare(first, second)
        same.add(found, not found.differing)
        found = compare(first, slowed)
        slow.add(found, any(d.metric == LATENCY.name and d.verdict == "slower" for d in found.differences))
        _say(f"try {number + 1} of {tries}: {same.right[-1]}, {slow.right[-1]}")
    return [same, slow]


def quality(jobs: Sequence[Job], work: Path, tries: int) -> list[Tally]:
    """One noisy copy of the diffusion model against itself, another of the same noise, and one that is 3 dB worse."""
    job = next(j for j in jobs if j.spec.task == TEXT2IMG and j.spec.recipe == "fp32")
    source, folder = job.built.root, work / "noisy"
    same = Tally("the same noisy weights, proven twice", "no difference", QUALITY.name)
    other = Tally("other noise of the same size", "not worse", QUALITY.name)
    worse = Tally(f"{LOSS:g} dB more noise", "worse", QUALITY.name)
    share, _ = proven_copy(source, folder / "first", _PSNR, 0, _SHARE)
    for number in range(tries):
        copies = {name: folder / f"{number}-{name}" for name in ("a", "again", "other", "worse")}
        seeds = [1 + 3 * number + step for step in range(3)]
        if not all((copy / RESULTS).exists() for copy in copies.values()):
            artifact = noisy_copy(source, copies["a"] / "artifact", share, seeds[0])
            psnr = prove(artifact, source)
            prove(noisy_copy(source, copies["again"] / "artifact", share, seeds[0]), source)
            prove(noisy_copy(source, copies["other"] / "artifact", share, seeds[1]), source)
            proven_copy(source, copies["worse"] / "artifact", psnr - LOSS, seeds[2], share * 1.41)
            for copy in copies.values():
                _write(replace(job, built=Built(copy / "artifact")), copy)
        found = {name: read_results(copy) for name, copy in copies.items()}
        again, others, worst = (compare(found["a"], found[name]) for name in ("again", "other", "worse"))
        same.add(again, not _of(again, "worse", "better", "cannot tell"))
        other.add(others, not _of(others, "worse"))
        worse.add(worst, bool(_of(worst, "worse")))
        _say(f"try {number + 1} of {tries}: {same.right[-1]}, {other.right[-1]}, {worse.right[-1]}")
    return [same, other, worse]


def run(suite: Suite, jobs: Sequence[Job], folder: Path, env: Mapping[str, str] | None = None) -> Results:
    """Measure the suite's cells once; a run that is there and whole is read."""
    file = folder / RESULTS
    if file.exists():
        found = read_results(file)
        if all(len(cell.samples) == suite.rounds for cell in found.cells) and len(found.cells) == len(jobs):
            return found
        file.unlink()
    with Writer(file) as writer:
        for job in jobs:
            writer.line("cell", facts(job.spec, job.built, folder, None))
    cases = [case_of(job.spec, job.built.root, suite.seconds, suite.calls) for job in jobs]
    cases = [replace(case, env={**case.env, **(env or {})}) for case in cases]
    measure(cases, suite.rounds, warmup=0, out=file, timeout=suite.timeout)
    return read_results(file)


def table(tallies: Sequence[Tally]) -> str:
    """A row for each kind of tries."""
    lines = ["| compared | wanted | was so | change, median (range) | cannot tell |"]
    lines.append("| --- | --- | ---: | --- | ---: |")
    for tally in tallies:
        shown = [f"{v:+.1f} dB" if tally.metric == QUALITY.name else f"{v:+.1%}" for v in _range(tally.changes)]
        figures = sum(len(one.differences) for one in tally.found)
        untold = sum(len(one.untold) for one in tally.found)
        so = f"{sum(tally.right)} of {len(tally.right)}"
        spread = f"{tally.metric} {shown[0]} ({shown[1]} to {shown[2]})"
        lines.append(f"| {tally.what} | {tally.wanted} | {so} | {spread} | {untold} of {figures} |")
    return "\n".join(lines)


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _of(found: Comparison, *verdicts: str) -> list[str]:
    """The cells of whose quality one of these is said."""
    return [d.cell for d in found.differences if d.metric == QUALITY.name and d.verdict in verdicts]


def _write(job: Job, folder: Path) -> None:
    """A results folder of one cell with one short run: what is compared is the proof in its manifest."""
    case = case_of(job.spec, job.built.root, 0.1, 1)
    measure([case], rounds=1, warmup=0, out=folder / RESULTS)
    with Writer(folder / RESULTS) as writer:
        writer.line("cell", facts(job.spec, job.built, folder, None))


def _jobs(suite: Suite, work: Path) -> list[Job]:
    """The suite's cells with their artifacts.

    Raises:
        BadInput: one of them cannot be made.
    """
    jobs, skipped, failed = prepare(suite, Builder(work, _report))
    if skipped or failed:
        errors = [one.what for one in skipped] + [error.what for _, error in failed]
        raise BadInput("\n".join(errors), 'pip install "vitrify[export,onnx,bench]"')
    return jobs


def _report(event: Event) -> None:
    _say(event.note or event.stage)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
