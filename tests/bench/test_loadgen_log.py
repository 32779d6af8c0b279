"""LoadGen's detail log, on lines of real runs of 6.0.17: verdict, reasons, figures, and what a killed run leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitrify.bench.loadgen.log import PERCENTILES, figures_of, read_log, settings_of
from vitrify.bench.loadgen.run import InvalidRun, invalid
from vitrify.core.errors import BadInput

LOGS = Path(__file__).parents[1] / "fixtures" / "loadgen"


def result(name: str) -> dict:
    log = read_log(LOGS / f"{name}.txt")
    target = {"qps": settings_of(log).get("target_qps")}
    found = {"scenario": settings_of(log)["scenario"], "target": target}
    return found | {"valid": log.valid, "reasons": log.reasons, **figures_of(log)}


def test_a_valid_single_stream_run() -> None:
    found = result("single")
    assert found["valid"] is True
    assert found["reasons"] == []
    assert invalid(found) is None
    assert found["queries"] == found["samples"] == 2306
    assert found["met"] == {
        "min_duration": True, "min_queries": True, "early_stopping": True, "performance_constraints": None
    }  # fmt: skip
    latency = [found["latency_ms"][q] for q in ("min", *PERCENTILES, "max")]
    assert None not in latency
    assert latency == sorted(latency)
    assert latency[1] == pytest.approx(0.06126, abs=1e-4)
    assert found["early_stopping_ms"]["90"] == pytest.approx(0.1146, abs=1e-4)
    assert found["early_stopping_ms"]["90"] >= found["latency_ms"]["90"]
    assert f"estimate: {round(found['early_stopping_ms']['90'] * 1e6)}" in found["early_stopping"]
    assert found["samples_per_second"] == pytest.approx(2267, abs=1)


def test_an_offline_run_counts_the_samples_of_its_one_query() -> None:
    found = result("offline")
    assert found["queries"] == 1
    assert found["samples"] == 110
    assert found["valid"] is False
    assert found["reasons"] == ["Increase expected QPS so the loadgen pre-generates a larger (coalesced) query."]
    error = invalid(found)
    assert isinstance(error, InvalidRun)
    assert error.exit_code == 3
    assert "Increase expected QPS" in error.what
    assert int(re.search(r"--qps (\d+)", error.fix)[1]) > found["samples_per_second"]  # type: ignore[index]


def test_a_server_run_that_was_too_slow_says_so_in_loadgens_words() -> None:
    found = result("server")
    assert found["met"]["performance_constraints"] is False
    assert found["over_latency"] == 193
    error = invalid(found)
    assert error is not None
    assert "Reduce target QPS to improve latency." in error.what
    assert "--latency-ms" in error.fix
    assert "--qps below 200" in error.fix


def test_a_server_run_with_too_few_queries_is_told_how_long_to_run() -> None:
    found = result("few")
    assert found["met"]["performance_constraints"] is True
    error = invalid(found)
    assert error is not None
    assert "Would need to run at least 438 more queries" in error.what
    seconds = int(re.search(r"--duration (\d+)", error.fix)[1])  # type: ignore[index]
    assert seconds * found["scheduled_per_second"] >= found["queries"] + 438


def test_an_accuracy_run_has_no_verdict() -> None:
    log = read_log(LOGS / "accuracy.txt")
    assert log.valid is None
    assert log.reasons == []


def test_settings_are_those_that_loadgen_ran_under() -> None:
    settings = settings_of(read_log(LOGS / "server.txt"))
    assert settings["scenario"] == "Server"
    assert settings["min_duration_ms"] == 1000
    assert settings["target_latency_ns"] == 10_000
    assert settings["target_qps"] == 200


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    text = (LOGS / "single.txt").read_text()
    cut = tmp_path / "cut.txt"
    cut.write_text(text[: text.index("result_validity") + 20])
    log = read_log(cut)
    assert log.torn == 1
    assert log.valid is None
    assert settings_of(log)["scenario"] == "SingleStream"


@pytest.mark.parametrize("text", ["", "a log of something else\n", ":::MLLOG {broken\n"])
def test_what_is_no_log_of_loadgen_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(BadInput, match="no detail log of LoadGen"):
        read_log(tmp_path / "log")
    with pytest.raises(BadInput, match="cannot be read"):
        read_log(tmp_path / "missing")
