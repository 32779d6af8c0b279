"""One cell of a matrix in a process of its own: opens an artifact, calls it, and prints what the parts took.

Run as `python -m vitrify.bench.worker ARTIFACT SPEC SECONDS CALLS`, where SPEC is a `Spec` as JSON.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtimes.forwarding import ForwardingSession
from .calls import Series, call_of
from .measure import MARK, STARTED
from .spec import Spec

if TYPE_CHECKING:
    from ..core.tensors import Array
    from ..runtimes.base import Session

Values = dict[str, float]


class TimedSession(ForwardingSession):
    """A session that keeps how long it ran, ms: `spent` since the last `lap`, and `laps`."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.spent = 0.0
        self.laps: list[float] = []

    def lap(self) -> None:
        self.laps.append(self.spent)
        self.spent = 0.0

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        start = time.perf_counter()
        out = super().run(tensors)
        self.spent += (time.perf_counter() - start) * 1e3
        return out


def run_cell(artifact: Path, spec: Spec, seconds: float, calls: int, started: float) -> tuple[Values, Series]:
    """Open, call once, warm up, and time calls for `seconds`, at least `calls` of them.

    Args:
        started: when the process was, in seconds since the epoch.

    Returns:
        Values, as docs/bench.md lists them, and the ms of each call and of each denoising step.

    Raises:
        VitrifyError: the artifact, the device or the runtime cannot be used, or a component gives NaN.
    """
    import numpy as _numpy  # noqa: F401  (its import belongs to the start, not to the artifact)

    from ..core.registry import load_runtime
    from ..pipelines.load import load, open_artifact
    from ..pipelines.presets import opened_with
    from ..runtimes.base import Options
    from .timing import waited

    load_runtime(spec.runtime)
    found: Values = {"start_s": time.time() - started}
    before = time.perf_counter()
    opened = open_artifact(artifact)
    found["load_s"] = time.perf_counter() - before
    before = time.perf_counter()
    options, offload = opened_with(spec.saved.get("preset"), Options(threads=spec.threads, **spec.options), "auto")
    pipeline: Any = load(opened, spec.device, options=options, runtime=spec.runtime, offload=offload, prompt_bytes=0)
    found["compile_s"] = time.perf_counter() - before
    try:
        call, parts = call_of(pipeline, spec)
        before = time.perf_counter()
        answered = call()
        found["first_s"] = time.perf_counter() - before
        found["cold_s"] = time.time() - started
        waits = waited()
        if waits is not None:
            found["cold_own_s"] = found["cold_s"] - waits.caller / 1e3
        _refuse_nan(answered, opened.root)
        values, series = steady(pipeline, call, parts, seconds, calls, spec)
        return found | values, series
    finally:
        pipeline.close()


def steady(
    pipeline: Any, call: Callable[[], object], parts: Series, seconds: float, calls: int, spec: Spec
) -> tuple[Values, Series]:
    """Warm up, then time calls; the pipeline's sessions are replaced by ones that tell their share.

    Args:
        call: makes one call of `pipeline`, and adds to `parts` what its stages took, ms.

    Returns:
        Values, as docs/bench.md lists them, and the ms of each call and of each denoising step.
    """
    from .energy import EnergyMeter
    from .timing import Yardstick, lower_quartile, peak_gflops, time_calls

    sessions = {name: TimedSession(session) for name, session in pipeline.sessions.items()}
    for name, session in sessions.items():
        pipeline.sessions[name] = session

    def lap() -> None:
        call()
        for session in sessions.values():
            session.lap()

    def warm() -> None:
        for values in (*parts.values(), *(session.laps for session in sessions.values())):
            values.clear()

    timed = time_calls(lap, seconds, calls, Yardstick(), warm)
    series = {"latency_ms": timed.calls, **{k: list(v) for k, v in parts.items() if k == "step_ms"}}
    found: Values = {
        "calls": len(timed.calls),
        "latency_ms": statistics.median(timed.calls),
        "items_per_s": spec.batch * len(timed.calls) / sum(timed.calls) * 1e3,
        "yardstick_ms": lower_quartile(timed.yardsticks),
    }
    if timed.least_disturbed is not None:
        found["own_ms"], found["crowded"] = timed.least_disturbed
    found |= {name: statistics.median(values) for name, values in parts.items()}
    found |= {f"{name}_ms": statistics.median(session.laps) for name, session in sessions.items()}
    meter = EnergyMeter(spec.device)
    if meter.source_is_readable:
        meter.start()
        for _ in timed.calls:
            call()
        joules = meter.stop()
        if joules is not None:
            found["joules"] = joules / len(timed.calls)
    found["peak_gflops"] = peak_gflops()  # last: its threads go on spinning
    return found, series


def _refuse_nan(answered: Any, artifact: Path) -> None:
    """Raise NotFinite where a classifier's scores are no numbers; a pipeline that draws looks for itself."""
    from ..core.errors import NotFinite

    answers = getattr(answered, "answers", ())
    if not all(math.isfinite(one["score"]) for answer in answers for one in answer):
        raise NotFinite(f"The model in {artifact} gives NaN scores.", "Export it again, or use a milder recipe.")


def main(arguments: Sequence[str]) -> int:
    from ..core.errors import VitrifyError

    if len(arguments) != 4:
        print("usage: python -m vitrify.bench.worker ARTIFACT SPEC SECONDS CALLS", file=sys.stderr)
        return 2
    artifact, spec, seconds, calls = arguments
    started = float(os.environ.get(STARTED) or time.time())
    try:
        values, series = run_cell(Path(artifact), Spec.from_json(json.loads(spec)), float(seconds), int(calls), started)
    except VitrifyError as exc:
        print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)
        return exc.exit_code
    print(MARK + json.dumps(values), MARK + json.dumps(series), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # the answer is out, and everything is closed: what PyTorch does to end takes time that nobody asked for
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
