"""MLPerf's LoadGen over an artifact or a server: queries arrive as its scenarios say, and its logs are kept.

LoadGen runs in a process of its own (`worker`), which is ended at Ctrl-C and when a query fails; this side
checks what was asked, follows, and reads LoadGen's verdict from its log.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ...core.errors import BadInput, Cancelled, MissingDependency, RuntimeFailure, VitrifyError
from ...core.progress import Event, Report, silent
from ...core.publish import disk_errors
from ..machine import describe_machine, versions
from ..spec import CLASSIFY
from .accuracy import write_labels, write_pictures
from .log import DETAIL, PREFIX, Log, figures_of, read_log, settings_of
from .plan import ACCURACY, MODES, OFFLINE, SCENARIOS, SERVER, LoadPlan, check, task_of
from .worker import MARK

RESULT = "result.json"
SCHEMA = 1
STATEMENT = (
    "Measured with MLPerf's LoadGen. Not an MLPerf result: it was not submitted to MLCommons, nor verified by it."
)
_WANTED = re.compile(r"at least (\d+) (more )?queries")  # "Need to process at least 64 queries", "... 365 more queries"
_LINES = 12  # of what a process that crashed said last


class InvalidRun(VitrifyError):
    """LoadGen ran to its end, and says that the run is not valid."""

    code = "invalid_run"
    exit_code = 3


def run_loadgen(plan: LoadPlan, output: Path, report: Report = silent) -> dict[str, Any]:
    """Run one scenario; LoadGen's logs and result.json come to lie in `output`.

    Returns:
        What result.json holds; where "valid" is false, see `invalid`.

    Raises:
        MissingDependency: LoadGen is not installed.
        UsageError, BadInput, BadArtifact, DeviceError, RuntimeFailure: it could not be run, or a query failed.
        Cancelled: Ctrl-C; the logs up to then lie in `output`.
    """
    from ...pipelines.load import family_of, open_artifact

    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingDependency("MLPerf's LoadGen is not installed.", 'pip install "vitrify[loadgen]"')
    artifact = open_artifact(plan.artifact)
    family_of(artifact)  # a manifest that lacks a component is told before a server is asked
    task = task_of(artifact)
    check(plan, artifact.name, task)
    started = time.time()
    with disk_errors(output):
        _claim(output)
        try:
            done = _follow(plan, output, report)
            log = read_log(output / DETAIL)
            result = _result(plan, done, log, started)
            if plan.mode == ACCURACY:
                names, truths = done["names"], done["truths"]
                result["accuracy"] = (
                    write_labels(output, names, truths, done["labels"])
                    if task == CLASSIFY
                    else write_pictures(output, names, done["size"])
                )
            (output / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        finally:
            with suppress(OSError):
                output.rmdir()  # where nothing came to lie in it
    return result


def _claim(output: Path) -> None:
    """Make the folder. Raises BadInput: it holds another run."""
    if output.exists() and not output.is_dir():
        raise BadInput(f"{output} is a file.", "Choose another folder with -o.")
    output.mkdir(parents=True, exist_ok=True)
    if (output / RESULT).exists() or any(output.glob(f"{PREFIX}*")):
        raise BadInput(f"{output} holds another run of LoadGen.", "Choose another folder with -o, or remove that one.")


def _follow(plan: LoadPlan, output: Path, report: Report) -> dict[str, Any]:
    """Run the worker to its end; what it says that was run."""
    stage = f"LoadGen, {SCENARIOS[plan.scenario]}"
    with tempfile.TemporaryFile() as stderr:
        # a session of its own: Ctrl-C is for this process, which then ends the other
        process = subprocess.Popen(
            # -P: a copy.py in the current folder is not Python's
            [sys.executable, "-P", "-m", "vitrify.bench.loadgen.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        done: dict[str, Any] | None = None
        report(Event(stage))
        try:
            with suppress(BrokenPipeError):  # it ended at once, and has said why
                process.stdin.write(json.dumps({"plan": plan.to_json(), "output": str(output.absolute())}) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                if not line.startswith(MARK):
                    continue  # some library's
                message = json.loads(line.removeprefix(MARK))
                if "error" in message:
                    raise _error(message["error"])
                if "note" in message:
                    report(Event(stage, note=message["note"]))
                if "progress" in message:
                    at = message["progress"]
                    report(Event(stage, min(at["seconds"], at["of"]), at["of"], "s"))
                done = message.get("done", done)
            code = process.wait()
        except KeyboardInterrupt:
            raise Cancelled(
                "Interrupted before LoadGen's end.", f"What it logged until then lies in {output}; run it again."
            ) from None
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
        if done is None:
            raise RuntimeFailure(
                f"The process of LoadGen ended with {code}. {_said(stderr)}", "Run the artifact alone to see more."
            )
    return done


def _error(told: Mapping[str, str]) -> VitrifyError:
    """The error that the worker told, as one of its class."""
    kinds = [VitrifyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds if kind.code == told["code"]), VitrifyError)
    return found(told["what"], told["fix"])


def _said(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()][-_LINES:]
    return "\n".join(["Its last lines:", *(f"  {line}" for line in lines)]) if lines else "It said nothing."


def _result(plan: LoadPlan, done: Mapping[str, Any], log: Log, started: float) -> dict[str, Any]:
    settings = settings_of(log)
    accuracy = plan.mode == ACCURACY
    duration = float(settings.get("min_duration_ms") or 0) / 1e3
    rule = dict(done["rule"])
    what, least = ("samples", "min_sample_count") if plan.scenario == OFFLINE else ("queries", "min_query_count")
    count = settings.get(least) or 0
    rule["met"] = None if accuracy else duration >= rule["min_duration_s"] and count >= rule["min_queries"]
    if rule["met"] is False:
        rule["what"] = (
            f"Shorter than MLPerf's rule: at least {duration:g} s were asked for; the rule is"
            f" {rule['min_duration_s']:g} s and {rule['min_queries']} {what}."
        )
    target: dict[str, Any] = {"percentile": float(settings.get("target_latency_percentile") or 0) * 100}
    if plan.scenario == SERVER:
        target |= {"qps": settings.get("target_qps"), "latency_ms": settings.get("target_latency_ns", 0) / 1e6}
    if plan.scenario == OFFLINE:  # no latency is asked for: there is one query
        target = {"expected_per_second": settings.get("target_qps")}
    return {
        "kind": "loadgen",
        "schema": SCHEMA,
        "statement": STATEMENT,
        "scenario": SCENARIOS[plan.scenario],
        "mode": MODES[plan.mode],
        "valid": log.valid,
        "reasons": log.reasons,
        **({} if accuracy else {"rule": rule, "target": target, **figures_of(log)}),
        "system": done["system"],
        "library": done["library"],
        "settings": settings,
        "errors": log.errors,
        "warnings": log.warnings + ([f"{log.torn} lines of the detail log cannot be read."] if log.torn else []),
        "loadgen": log.values.get("loadgen_version"),
        "started": started,
        "machine": describe_machine(),
        "versions": versions(),
    }


def invalid(result: Mapping[str, Any]) -> InvalidRun | None:
    """The error that a result is; None where LoadGen calls it valid, or gives no verdict."""
    if result["valid"] is not False:
        return None
    said = " ".join(result["reasons"]) or "it gives no reason"
    return InvalidRun(f"LoadGen calls the run INVALID: {said}", " ".join(_fixes(result)) or "See the detail log.")


def _fixes(result: Mapping[str, Any]) -> list[str]:
    """What to change, by what was not met."""
    scenario, met = result["scenario"], result["met"]
    rate = float(result["samples_per_second"] or 0)
    fixes = []
    if met["performance_constraints"] is False:
        most = result["latency_ms"]["99"]
        within = "" if most is None else f" (99 % took up to {most:.4g} ms)"
        fixes.append(f"Give a --qps below {result['target']['qps']:.4g}, or a longer --latency-ms{within}.")
    if met["min_duration"] is False or met["min_queries"] is False:
        fixes.append(
            {
                "Offline": f"Give --qps {math.ceil(rate * 1.2)}: more queries are then made than it answered.",
                "Server": "Give a higher --qps or a longer --duration.",
            }.get(scenario, "Run it again while the machine is quiet, so that the warm-up tells its speed.")
        )
    elif met["early_stopping"] is False and not fixes:
        fixes.append(f"Give {_longer(result)}, so that there are enough queries.")
    return fixes


def _longer(result: Mapping[str, Any]) -> str:
    """The duration after which there are as many queries as early stopping wants, with a tenth to spare."""
    wanted = _WANTED.search(result["early_stopping"])
    rate = float(result.get("scheduled_per_second") or result["samples_per_second"] or 0)
    if wanted is None or not rate:
        return "a longer --duration"
    count = int(wanted[1]) + (int(result["queries"]) if wanted[2] else 0)
    return f"--duration {math.ceil(1.1 * count / rate)}"
