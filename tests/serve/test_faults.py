"""What may go wrong while it serves, done for real: processes killed, clients gone, disks full, models broken."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

LONG = 900  # steps that take much longer than any test waits


def ask(http: Any, server: Any, **given: Any) -> Any:
    """Let a job in; its id."""
    body = {"model": server.draws, "prompt": "a fox", "steps": 2, "seed": 1, **given}
    answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def until(http: Any, id: str, *states: str, seconds: float = 60) -> dict[str, Any]:
    """The job once it is in one of these states."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = http.get(f"/v1/jobs/{id}").json()
        if job["status"] in states:
            return job
        time.sleep(0.02)
    raise AssertionError(f"{job['status']}, not {states}")


def stepping(http: Any, id: str, step: int = 3) -> dict[str, Any]:
    """The job once it has made a few steps."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job = http.get(f"/v1/jobs/{id}").json()
        if job.get("step", 0) >= step:
            return job
        time.sleep(0.02)
    raise AssertionError(f"it does not step: {job}")


def fill(file: Path) -> None:
    """Until the disk has no room."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass


def labels(http: Any, server: Any, png: bytes) -> httpx.Response:
    return http.post(f"/models/{server.labels}", content=png)


@pytest.fixture
def own(start_server: Callable[..., Any]) -> Any:
    """A server that this test may break."""
    return start_server("--grace", 5)


def test_a_worker_killed_in_mid_step_fails_its_job_alone(own: Any, png: bytes) -> None:
    with own.client() as http:
        running, behind = ask(http, own, steps=LONG), ask(http, own)
        stepping(http, running)
        before = own.worker()
        os.kill(before, signal.SIGKILL)
        failed = until(http, running, "failed")
        assert failed["error"]["code"] == "worker_lost"
        assert "SIGKILL" in failed["error"]["what"]
        assert http.get("/healthz").status_code == 200
        assert until(http, behind, "succeeded")["pictures"]
        assert labels(http, own, png).status_code == 200
        assert own.worker() != before
        assert 'vitrify_worker_restarts_total{device="cpu",worker="0"} 1.0' in http.get("/metrics").text


def test_a_client_that_waits_for_a_lost_worker_is_told_to_try_again(own: Any) -> None:
    async def lost() -> httpx.Response:
        async with httpx.AsyncClient(base_url=own.url, timeout=60) as http:
            body = {"prompt": "a fox", "size": "64x64", "num_inference_steps": LONG}
            waits = asyncio.create_task(http.post("/v1/images/generations", json=body))
            while not (mine := (await http.get("/v1/queue")).json()["mine"]) or not mine[0].get("step"):
                await asyncio.sleep(0.02)
            os.kill(own.worker(), signal.SIGKILL)
            return await waits

    answer = asyncio.run(lost())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "worker_lost"


def test_a_stopped_worker_is_killed_after_the_deadline(own: Any) -> None:
    with own.client() as http:
        assert until(http, ask(http, own), "succeeded")  # the model is open: two seconds are for steps alone
        running = ask(http, own, steps=LONG, timeout=2)
        stepping(http, running)
        worker = own.worker()
        os.kill(worker, signal.SIGSTOP)  # hangs: neither steps nor hears that it is cancelled
        failed = until(http, running, "failed", seconds=20)
        assert failed["error"]["code"] == "deadline"
        assert until(http, ask(http, own), "succeeded")
        assert own.worker() != worker


def test_a_job_that_waits_behind_another_is_not_its_end(own: Any, png: bytes) -> None:
    with own.client() as http:
        running = ask(http, own, steps=200)
        labels(http, own, png)  # the model is open
        stepping(http, running)
        worker = own.worker()
        os.kill(worker, signal.SIGSTOP)  # a very long step
        body = {"model": own.labels, "pictures": [base64.b64encode(png).decode()], "timeout": 1}
        late = http.post("/v1/jobs", json=body).json()["id"]
        assert until(http, late, "failed", seconds=20)["error"]["code"] == "deadline"
        os.kill(worker, signal.SIGCONT)
        assert until(http, running, "succeeded", "failed", seconds=120)["status"] == "succeeded"
        assert own.worker() == worker


def test_a_load_that_is_asked_for_while_a_worker_starts_is_done(own: Any) -> None:
    with own.client() as http:
        os.kill(own.worker(), signal.SIGKILL)
        time.sleep(0.05)
        loaded = http.post(f"/v1/models/{own.labels}/load?pin=true", timeout=30)
        assert loaded.status_code in (200, 503)
        own.wait_ready()
        assert http.post(f"/v1/models/{own.labels}/load?pin=true").json()["loaded"][0]["pinned"]
        os.kill(own.worker(), signal.SIGKILL)
        end, opened = time.monotonic() + 30, True
        while opened and time.monotonic() < end:  # until the server has noticed
            opened = http.get(f"/v1/models/{own.labels}").json()["loaded"]
        while not opened and time.monotonic() < end:
            opened = http.get(f"/v1/models/{own.labels}").json()["loaded"]
            time.sleep(0.05)
        assert opened[0]["pinned"], "it is open again"


def test_a_deadline_stops_a_job_within_a_step(own: Any) -> None:
    with own.client() as http:
        worker = own.worker()
        failed = until(http, ask(http, own, steps=LONG, timeout=1), "failed", seconds=20)
        assert failed["error"]["code"] == "deadline"
        assert failed["finished"] - failed["created"] < 4
        assert own.worker() == worker


def test_a_worker_with_too_much_memory_is_ended(start_server: Callable[..., Any]) -> None:
    server = start_server("--worker-memory", 70_000_000)  # enough for the process, not for a model
    with server.client() as http:
        failed = until(http, ask(http, server, steps=LONG), "failed")
        assert failed["error"]["code"] == "out_of_memory"
        assert "0.1 GB are allowed" in failed["error"]["what"]
        assert http.get("/healthz").status_code == 200


def test_kill_9_of_the_server_loses_no_job(start_server: Callable[..., Any]) -> None:
    first = start_server()
    with first.client() as http:
        done = ask(http, first)
        picture = http.get(until(http, done, "succeeded")["pictures"][0]).content
        running = ask(http, first, steps=LONG)
        stepping(http, running)
        queued = [ask(http, first, seed=seed) for seed in range(20)]
        worker = first.worker()
    first.process.kill()
    first.process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "the worker outlived its server"
    second = start_server(state=first.state)
    with second.client() as http:
        assert http.get(f"/v1/jobs/{done}/pictures/0").content == picture
        lost = http.get(f"/v1/jobs/{running}").json()
        assert (lost["status"], lost["error"]["code"]) == ("interrupted", "interrupted")
        for id in queued:
            assert until(http, id, "succeeded", "failed", "interrupted")["status"] == "succeeded"


def test_two_servers_do_not_share_a_folder(own: Any, start_server: Callable[..., Any]) -> None:
    other = start_server(state=own.state, wait=False)
    assert other.process.wait(60) == 2
    assert "Another server keeps its jobs in" in other.log.read_text()


def test_a_taken_port_is_one_clear_error(own: Any, start_server: Callable[..., Any]) -> None:
    other = start_server("--port", own.url.rpartition(":")[2], wait=False)
    assert other.process.wait(60) == 2
    assert "cannot be listened on" in other.log.read_text()
    assert "Traceback" not in other.log.read_text()


@pytest.mark.parametrize("path", ["openai", "a1111", "huggingface"])
def test_a_client_that_leaves_stops_its_job_within_a_step(own: Any, path: str) -> None:
    with own.client() as http:
        calls = {
            "openai": ("/v1/images/generations", {"prompt": "a", "size": "64x64", "num_inference_steps": LONG}),
            "a1111": ("/sdapi/v1/txt2img", {"prompt": "a", "width": 64, "height": 64, "steps": 150}),
            "huggingface": (
                f"/models/{own.draws}",
                {"inputs": "a", "parameters": {"width": 64, "height": 64, "num_inference_steps": LONG}},
            ),
        }

        async def leaves() -> dict[str, Any]:
            async with (
                httpx.AsyncClient(base_url=own.url, timeout=60) as leaving,
                httpx.AsyncClient(base_url=own.url, timeout=60) as other,
            ):
                task = asyncio.create_task(leaving.post(calls[path][0], json=calls[path][1]))
                while not (mine := (await other.get("/v1/queue")).json()["mine"]) or mine[0].get("step", 0) < 2:
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            return mine[0]

        left = asyncio.run(leaves())
        ended = until(http, left["id"], "cancelled", seconds=10)
        time.sleep(0.3)
        assert ended["step"] < left["steps"] / 2
        assert http.get(f"/v1/jobs/{left['id']}").json()["step"] == ended["step"], "it stepped after its end"
        assert own.idle(http)


def test_500_requests_at_once_get_a_result_or_a_429(start_server: Callable[..., Any], png: bytes) -> None:
    server = start_server("--queue", 32)

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(http.post(f"/models/{server.labels}", content=png) for _ in range(500)))

    before, held = server.resident(), []
    for _ in range(2):
        answers = asyncio.run(flood())
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 32
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert abs(sum(one["score"] for one in answer.json())) <= 1.01
        held.append(server.resident())
    assert held[-1] - held[0] < 10_000_000, [before, *held]


def test_drawing_500_at_once_as_jobs_never_overfills_the_queue(start_server: Callable[..., Any]) -> None:
    server = start_server("--queue", 32)

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=500)
        body = {"model": server.draws, "prompt": "a", "steps": 1}
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(http.post("/v1/jobs", json=body) for _ in range(500)))

    answers = asyncio.run(flood())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {202, 429}
    with server.client() as http:
        for answer in answers:
            if answer.status_code == 202:
                assert until(http, answer.json()["id"], "succeeded", "failed")["status"] == "succeeded"


def test_a_full_disk_refuses_new_jobs_and_fails_those_that_end(
    start_server: Callable[..., Any], small_disk: Callable[[int], Path], png: bytes
) -> None:
    disk = small_disk(1_000_000)
    server = start_server(state=disk / "state")
    with server.client() as http:
        kept = ask(http, server)
        picture = http.get(until(http, kept, "succeeded")["pictures"][0]).content
        running = ask(http, server, steps=LONG // 3)
        stepping(http, running)
        filler = disk / "filler"
        fill(filler)
        ended = until(http, running, "failed", seconds=120)
        assert ended["error"]["code"] == "disk"
        assert "Free some space" in ended["error"]["fix"]
        body = {"model": server.labels, "pictures": [base64.b64encode(png).decode()]}
        refused = http.post("/v1/jobs", json=body)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "disk"
        assert labels(http, server, png).status_code == 200, "what is not kept needs no disk"
        assert http.get(f"/v1/jobs/{kept}/pictures/0").content == picture
        filler.unlink()
        assert until(http, ask(http, server), "succeeded")
        assert http.get(f"/v1/jobs/{running}").json()["status"] == "failed"
    server.process.terminate()
    assert server.process.wait(30) == 0


@pytest.fixture
def damaged(emotions_artifact: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the classifier, and its file of weights."""
    folder = tmp_path / "damaged"
    shutil.copytree(emotions_artifact, folder)
    return folder, max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)


def test_a_model_that_was_copied_badly_is_not_served(start_server: Callable[..., Any], damaged: Any) -> None:
    folder, weights = damaged
    os.truncate(weights, weights.stat().st_size // 2)
    server = start_server(models=(folder,), wait=False)
    assert server.process.wait(60) == 6
    assert weights.name in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_model_that_breaks_while_served_harms_no_other(
    start_server: Callable[..., Any], damaged: Any, emotions_artifact: Path, diffusion_artifact: Path, png: bytes
) -> None:
    folder, weights = damaged
    server = start_server(models=(folder, emotions_artifact, diffusion_artifact))
    whole = weights.read_bytes()
    os.truncate(weights, len(whole) // 2)
    with server.client() as http:
        for _ in range(2):
            answer = http.post(f"/models/{folder.name}", content=png)
            assert answer.status_code == 503
            assert weights.name in answer.json()["error"]
        loaded = http.post(f"/v1/models/{folder.name}/load")
        assert (loaded.status_code, loaded.json()["error"]["code"]) == (503, "bad_artifact")
        assert labels(http, server, png).status_code == 200
        assert until(http, ask(http, server), "succeeded")
        weights.write_bytes(whole)
        assert http.post(f"/models/{folder.name}", content=png).status_code == 200, "it was mended"


def test_sigterm_under_load_finishes_what_runs_and_keeps_what_waits(start_server: Callable[..., Any]) -> None:
    first = start_server("--grace", 60)
    with first.client() as http:
        running = ask(http, first, steps=150)
        waiting = [ask(http, first, seed=seed) for seed in range(5)]
        stepping(http, running)
        first.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert http.get("/readyz").status_code == 503
        refused = http.post("/v1/jobs", json={"model": first.draws, "prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
    assert first.process.wait(60) == 0
    assert "Traceback" not in first.log.read_text()
    second = start_server(state=first.state)
    with second.client() as http:
        assert http.get(f"/v1/jobs/{running}").json()["status"] == "succeeded"
        for id in waiting:
            assert until(http, id, "succeeded", "failed")["status"] == "succeeded"


def test_sigterm_without_grace_interrupts_what_runs(start_server: Callable[..., Any]) -> None:
    first = start_server("--grace", 0)
    with first.client() as http:
        running = ask(http, first, steps=LONG)
        stepping(http, running)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(20) == 0
    with start_server(state=first.state).client() as http:
        assert http.get(f"/v1/jobs/{running}").json()["status"] == "interrupted"


def test_1000_jobs_submitted_and_cancelled(own: Any) -> None:
    held: list[int] = []
    with own.client() as http:
        for number in range(1000):
            id = ask(http, own, steps=50, seed=number)
            if number % 3:
                time.sleep(0.002 * (number % 5))
            assert http.delete(f"/v1/jobs/{id}").status_code == 202
            if number % 10 == 0:
                assert until(http, id, "cancelled", "succeeded")
            if number in (300, 999):
                assert own.idle(http)
                held.append(own.resident() + own.resident(own.worker()))
        assert until(http, ask(http, own), "succeeded")
        states = Counter(job["status"] for job in http.get("/v1/jobs?limit=500").json()["jobs"])
        assert set(states) <= {"cancelled", "succeeded"}
    assert held[1] - held[0] < 15_000_000, held
