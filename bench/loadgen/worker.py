"""The process in which LoadGen runs, so that whoever started it can end it: LoadGen's loop is C++ and heeds nobody.

Run as `python -m vitrify.bench.loadgen.worker`; a `LoadPlan` and the folder of the logs come as one JSON line on
stdin, messages go to stdout as lines that begin with `MARK`. It ends when stdin does.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import MissingDependency, RuntimeFailure, VitrifyError
from ..spec import CLASSIFY
from .answers import Answering, open_pipeline
from .library import QuerySampleLibrary, drawn_pictures, picture_library, pictures_in, prompt_library
from .plan import (
    BATCH,
    BENCHMARKS,
    CLIENTS,
    MODES,
    OFFLINE,
    SCENARIOS,
    SERVER,
    SINGLE_STREAM,
    TENSORS,
    Endpoint,
    LoadPlan,
    endpoint_of,
    setting,
    task_of,
)
from .system import Failure, SystemUnderTest, speed_of

MARK = "VITRIFY_LOADGEN "
_FLUSH = 1.2  # seconds in which LoadGen's log, written once a second, reaches the disk
_MARGIN = 1.05  # an Offline run should last as long as it must, also where the machine gets quicker than it was
Tell = Callable[[dict[str, Any]], None]


def run(plan: LoadPlan, output: Path, tell: Tell) -> dict[str, Any]:
    """One test, with LoadGen's logs in `output`. What the result says of the system, the library and the rule.

    Raises:
        VitrifyError: the model, the server or the library cannot be used, or a query failed.
    """
    from ...pipelines.load import open_artifact

    loadgen = _loadgen()
    artifact = open_artifact(plan.artifact)
    task = task_of(artifact)
    settings = loadgen.TestSettings()
    # LoadGen reads the configuration that it holds once a process; the other file is for settings of one's own
    settings.FromConfig(os.devnull, BENCHMARKS[task], SCENARIOS[plan.scenario], 1)
    endpoint = endpoint_of(plan.url, artifact.name, task) if plan.url else None
    single = plan.scenario == SINGLE_STREAM
    clients = 1 if single or endpoint is None else plan.clients or CLIENTS
    most = 1 if single else plan.batch or BATCH[task]
    with tempfile.TemporaryDirectory() as scratch:
        library = _library(plan, artifact, task, endpoint, settings.performance_sample_count_override, Path(scratch))
        rule = {
            "benchmark": BENCHMARKS[task],
            "min_duration_s": settings.min_duration_ms / 1e3,
            # LoadGen's configuration: where a data set has fewer, its size is the limit; what is made here is none
            "min_queries": min(settings.min_query_count, len(library.names))
            if plan.scenario == OFFLINE and (plan.pictures or plan.prompts)
            else settings.min_query_count,
        }
        answering = _answering(plan, artifact, task, endpoint, most, tell)
        try:
            some = range(min(library.at_once, max(8, answering.most * clients)))
            library.load(some)
            alone = clients == answering.most == 1
            seconds = min(1.0, (plan.duration or 1e9) / 4)
            speed = speed_of(answering, [library.sample(n) for n in some], clients, seconds)
            tell({"note": f"warm-up: {speed:.4g} samples/s" + ("" if alone else f" in calls of {answering.most}")})
            library.unload(some)
            _apply(loadgen, settings, plan, rule, speed)
            _test(loadgen, settings, plan, output, library, answering, clients, tell)
        finally:
            answering.close()
    return {
        "rule": rule,
        "system": {
            "artifact": artifact.name,
            "id": artifact.id,
            "recipes": {n: c.precision.get("recipe") for n, c in artifact.components.items()},
            **answering.facts,
            "batch": answering.most,
            "clients": clients,
        },
        "library": {
            "samples": len(library.names),
            "source": plan.pictures or plan.prompts or "made by vitrify",
            "prepared": _PREPARED[_carries(task, endpoint)],
        },
        "names": library.names,
        "truths": library.truths,
        "labels": artifact.pipeline.get("labels"),
        "size": [answering.facts.get("width"), answering.facts.get("height")],
    }


_PREPARED = {
    "tensors": "in LoadSamplesToRam, untimed: decoded, resized, normalised",
    "files": "by the server, timed: a query carries the file",
    "prompts": "in the query, timed: a query carries the prompt",
}


def _carries(task: str, endpoint: Endpoint | None) -> str:
    if endpoint is not None:
        return endpoint.carries
    return TENSORS if task == CLASSIFY else "prompts"


def _loadgen() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as exc:
        raise MissingDependency(f"LoadGen does not import: {exc}.", 'pip install "vitrify[loadgen]"') from exc


def _library(
    plan: LoadPlan, artifact: Any, task: str, endpoint: Endpoint | None, most: int, scratch: Path
) -> QuerySampleLibrary:
    if task != CLASSIFY:
        return prompt_library(Path(plan.prompts) if plan.prompts else None, most)
    root = Path(plan.pictures) if plan.pictures else None
    pictures = pictures_in(root, setting(artifact, "labels")) if root else drawn_pictures(scratch)
    return picture_library(pictures, artifact, _carries(task, endpoint), most, root)


def _answering(plan: LoadPlan, artifact: Any, task: str, endpoint: Endpoint | None, most: int, tell: Tell) -> Answering:
    if endpoint is None:
        opened, said = open_pipeline(plan, artifact, task == CLASSIFY, most)
        tell({"note": f"device: {said}"})
        return opened
    from .http import open_client

    client = open_client(plan, endpoint, artifact, most)
    tell({"note": f"asking {client.facts['url']}, which carries {client.facts['carries']}"})
    return client


def _apply(loadgen: Any, settings: Any, plan: LoadPlan, rule: dict[str, Any], speed: float) -> None:
    """What was asked for, over what the rules say."""
    settings.scenario = getattr(loadgen.TestScenario, SCENARIOS[plan.scenario])
    settings.mode = getattr(loadgen.TestMode, MODES[plan.mode])
    settings.performance_sample_count_override = 0  # the library's own
    whole = plan.duration is None or plan.duration >= rule["min_duration_s"]
    if plan.duration is not None:
        settings.min_duration_ms = max(1, round(plan.duration * 1e3))
    settings.min_query_count = rule["min_queries"] if whole else 1
    settings.single_stream_expected_latency_ns = max(1.0, 1e9 / speed / 2)
    settings.offline_expected_qps = plan.qps or speed * _MARGIN
    if plan.scenario == SERVER:
        settings.server_target_qps = plan.qps or speed / 2
        if plan.latency_ms is not None:
            settings.server_target_latency_ns = round(plan.latency_ms * 1e6)


def _test(
    loadgen: Any,
    settings: Any,
    plan: LoadPlan,
    output: Path,
    library: QuerySampleLibrary,
    answering: Answering,
    clients: int,
    tell: Tell,
) -> None:
    """Run LoadGen to its end.

    Raises:
        VitrifyError: a sample could not be loaded, or a query not be answered.
    """
    failure = Failure()

    def complete(ids: Sequence[int], answers: Sequence[bytes]) -> None:
        kept = [array.array("B", one) for one in answers]  # LoadGen copies what it logs before this returns
        places = [one.buffer_info() for one in kept]
        loadgen.QuerySamplesComplete(
            [loadgen.QuerySampleResponse(id, *place) for id, place in zip(ids, places, strict=True)]
        )

    single = plan.scenario == SINGLE_STREAM
    system = SystemUnderTest(answering, library.sample, complete, failure, 0 if single else clients)

    def issue(samples: Sequence[Any]) -> None:
        queries = [(sample.id, sample.index) for sample in samples]
        (system.answer if single else system.put)(queries)

    def load(numbers: Sequence[int]) -> None:
        try:
            library.load(numbers)
        except BaseException as exc:
            failure.note(exc)

    logs = loadgen.LogSettings()
    logs.log_output.outdir = str(output)
    logs.enable_trace = False
    sut = loadgen.ConstructSUT(issue, lambda: None)
    qsl = loadgen.ConstructQSL(len(library.names), library.at_once, load, library.unload)
    over = threading.Event()
    ticker = threading.Thread(target=_tick, args=(failure, over, system, settings, tell), daemon=True)
    ticker.start()
    try:
        # LoadGen would take up an audit.config that lies in the current folder
        loadgen.StartTestWithLogSettings(sut, qsl, settings, logs, str(output / "audit.config"))
    finally:
        over.set()
        system.close()
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
    if failure.error is not None:
        raise failure.error


def _tick(failure: Failure, over: threading.Event, system: SystemUnderTest, settings: Any, tell: Tell) -> None:
    """Say how far it is once a second; where a query failed, end the process that LoadGen would keep for minutes."""
    start, total = time.monotonic(), settings.min_duration_ms / 1e3
    while not over.wait(1.0):
        if failure.happened.is_set():
            time.sleep(_FLUSH)
            if failure.error is not None and not over.is_set():
                _leave(tell, failure.error)
            return
        tell({"progress": {"seconds": time.monotonic() - start, "of": total, "samples": system.done}})


def _leave(tell: Tell, error: BaseException) -> None:
    """Tell the error and end, threads and LoadGen and all."""
    if not isinstance(error, VitrifyError):
        traceback.print_exception(error)
        error = RuntimeFailure(
            f"The system under test failed: {type(error).__name__}: {error}.", "Run the artifact alone to see more."
        )
    tell({"error": {"code": error.code, "what": error.what, "fix": error.fix}})
    sys.stderr.flush()
    os._exit(error.exit_code)


def _watch_parent() -> None:
    """End when whoever started this is gone: its end of stdin closes."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> int:
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch_parent, daemon=True).start()
    one = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with one:
            print(MARK + json.dumps(message), flush=True)

    try:
        done = run(LoadPlan.from_json(given["plan"]), Path(given["output"]), tell)
    except BaseException as exc:
        _leave(tell, exc)
    tell({"done": done})
    sys.stderr.flush()
    os._exit(0)  # not by the interpreter's own end, which a thread that reads stdin disturbs


if __name__ == "__main__":
    main()
