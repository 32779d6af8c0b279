"""LoadGen's detail log, a line of JSON for each thing it says, and what the lines say of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BadInput

DETAIL, SUMMARY, ACCURACY = "mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
PREFIX = "mlperf_log_"
_MARK = ":::MLLOG "
PERCENTILES = ("50", "90", "95", "97", "99", "99.9")


@dataclass(frozen=True)
class Log:
    """values: key -> the last that was said of it. errors, warnings: in LoadGen's words. torn: unreadable lines."""

    values: Mapping[str, Any]
    errors: list[str]
    warnings: list[str]
    torn: int = 0

    @property
    def valid(self) -> bool | None:
        """LoadGen's verdict; None where there is none, as of an accuracy run."""
        said = self.values.get("result_validity")
        return None if said is None else said == "VALID"

    @property
    def reasons(self) -> list[str]:
        """Why a run is not valid, in LoadGen's words."""
        if self.valid is not False:
            return []
        said = [_words(self.values.get("result_invalid_reason"))]
        if self.values.get("early_stopping_met") is False:
            said.append(_words(self.values.get("early_stopping_result")))
        return [one for one in [*self.errors, *said] if one]


def read_log(file: Path) -> Log:
    """Read a detail log; that of a run which was ended has fewer lines, and the last may be torn.

    Raises:
        BadInput: it cannot be read, or is not LoadGen's.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as exc:
        raise BadInput(f"{file} cannot be read: {exc.strerror}.", "Name the folder of a LoadGen run.") from exc
    values: dict[str, Any] = {}
    said: dict[str, list[str]] = {"is_error": [], "is_warning": []}
    torn = 0
    for line in lines:
        if not line.startswith(_MARK):
            continue
        try:
            data = json.loads(line.removeprefix(_MARK), strict=False)
            values[data["key"]] = data["value"]
            for kind, messages in said.items():
                if data["metadata"].get(kind):
                    messages.append(_words(data["value"]))
        except (ValueError, LookupError, TypeError, AttributeError):
            torn += 1
    if "loadgen_version" not in values:
        raise BadInput(f"{file} is no detail log of LoadGen.", "Name the folder of a LoadGen run.")
    return Log(values, said["is_error"], said["is_warning"], torn)


def _words(value: Any) -> str:
    """A text of the log on one line: "* A.  * B." as "A. B."."""
    text = str(value or "").replace("\n", " ")
    return " ".join(part for part in text.split() if part != "*")


def figures_of(log: Log) -> dict[str, Any]:
    """What a performance run measured: times in ms, of samples.

    Of the Offline scenario a latency is the time from the start of its one query.
    """
    values = log.values

    def ms(key: str) -> float | None:
        number = values.get(key)
        return number / 1e6 if isinstance(number, int | float) and not isinstance(number, bool) else None

    latency = {name: ms(f"result_{name}_latency_ns") for name in ("min", "mean", "max")}
    latency |= {q: ms(f"result_{float(q):.2f}_percentile_latency_ns") for q in PERCENTILES}
    scenario = values.get("effective_scenario")
    rate = {
        "SingleStream": "result_qps_with_loadgen_overhead",
        "Offline": "result_samples_per_second",
        "Server": "result_completed_samples_per_sec",
    }
    found = {
        "latency_ms": latency,
        "samples_per_second": values.get(rate.get(str(scenario), "")),
        "queries": values.get("result_query_count"),
        "samples": (values.get("result_query_count") or 0) * (values.get("generated_samples_per_query") or 1),
        "met": {
            "min_duration": values.get("result_min_duration_met"),
            "min_queries": values.get("result_min_queries_met"),
            "early_stopping": values.get("early_stopping_met"),
            "performance_constraints": values.get("result_perf_constraints_met"),
        },
        "early_stopping": _words(values.get("early_stopping_result")),
    }
    if scenario == "SingleStream":  # 0 where there were too few queries to tell
        found["early_stopping_ms"] = {
            "90": ms("early_stopping_latency_ss") or None,
            "99": ms("early_stopping_latency_ms") or None,
        }
    if scenario == "Server":
        found["scheduled_per_second"] = values.get("result_scheduled_samples_per_sec")
        found["over_latency"] = values.get("result_overlatency_query_count")
    return found


def settings_of(log: Log) -> dict[str, Any]:
    """What LoadGen says that it ran under."""
    return {k.removeprefix("effective_"): v for k, v in log.values.items() if k.startswith("effective_")}
