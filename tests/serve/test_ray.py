"""The server on Ray Serve, two replicas of everything: what they share, what they lose, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from vitrify.core.errors import UsageError
from vitrify.serve.on_ray import build, replicas_of

psutil = pytest.importorskip("psutil", reason="needs psutil")
httpx = pytest.importorskip("httpx", reason="needs httpx")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(os.environ.get("VITRIFY_TEST_ENGINE") != "ray", reason="needs VITRIFY_TEST_ENGINE=ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its libraries
]
END = ("succeeded", "failed", "cancelled", "interrupted")


def until(found, seconds=60, message="it did not come"):
    """What `found` gives, once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = found()
        if result:
            return result
        time.sleep(0.1)
    raise AssertionError(message)


def replicas(server, name):
    """The processes of a deployment: Front, Jobs, Drawing or Labelling."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if process.cmdline()[0].startswith(f"ray::ServeReplica:vitrify:{name}"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def whole(server, http):
    """Waits until two replicas of each kind are there and take jobs."""

    def there():
        ready = http.get("/metrics").text.count('vitrify_worker_ready{device="cpu"')
        return ready == 4 and http.get("/readyz").status_code == 200

    until(there, message="the replicas are not there")


def submit(http, server, *, steps=2, **fields):
    body = {"model": server.draws, "prompt": "a fox face", "steps": steps, "seed": 7, **fields}
    answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def job(http, id):
    answer = http.get(f"/v1/jobs/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def runs(http, id):
    """The job, once it has made a step."""
    return until(lambda: (now := job(http, id))["status"] == "running" and now.get("step", 0) > 0 and now)


def ended(http, id, seconds=60):
    return until(lambda: (now := job(http, id))["status"] in END and now, seconds)


def by_front(server, path, times=60):
    """What each front answers."""
    said = {}
    for _ in range(times):
        with server.client() as own:  # of a connection of its own
            answer = own.get(path)
            said.setdefault(answer.headers["x-served-by"], []).append(answer)
    return said


@pytest.fixture
def both(server, http):
    """The shared server, whole."""
    whole(server, http)
    return server


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("1-4", (1, 4)), ("3-3", (3, 3))])
def test_numbers_of_replicas(text, expected):
    assert replicas_of(text) == expected


@pytest.mark.parametrize("text", ["", "0", "two", "4-1", "0-2", "-2", "1-", "99999"])
def test_numbers_that_are_none(text):
    with pytest.raises(UsageError, match="no number of replicas"):
        replicas_of(text)


def test_two_fronts_answer_alike(both, http):
    said = by_front(both, "/v1/models")
    assert len(said) == 2
    assert {tuple(one["id"] for one in a.json()["data"]) for answers in said.values() for a in answers} == {
        (both.draws, both.labels)
    }
    assert len(replicas(both, "Front")) == 2


def test_a_model_is_loaded_on_both_replicas_and_unloaded(both, http):
    for name in (both.draws, both.labels):
        loaded = http.post(f"/v1/models/{name}/load").json()["loaded"]
        assert [one["device"] for one in loaded] == ["cpu", "cpu"]
        assert all(one["bytes"] > 0 for one in loaded)
        http.post(f"/v1/models/{name}/unload")
        until(lambda name=name: http.get(f"/v1/models/{name}").json()["loaded"] == [])


def test_two_pictures_are_drawn_at_once(both, http):
    http.post(f"/v1/models/{both.draws}/load")
    ids = [submit(http, both, steps=900, images=4) for _ in range(2)]
    for id in ids:
        runs(http, id)
    assert [job(http, id)["status"] for id in ids] == ["running"] * 2
    third = submit(http, both)
    assert job(http, third)["status"] == "queued"
    for id in ids:
        http.delete(f"/v1/jobs/{id}")
    assert ended(http, third)["status"] == "succeeded"


def test_any_front_has_the_job_and_its_key(both):
    headers = {"Idempotency-Key": "the-same-on-every-front"}
    body = {"model": both.draws, "prompt": "a fox face", "steps": 2}
    seen = Counter()
    ids = set()
    for _ in range(40):
        with both.client() as own:
            answer = own.post("/v1/jobs", json=body, headers=headers)
            ids.add(answer.json()["id"])
            seen[answer.headers["x-served-by"]] += 1
    assert len(ids) == 1
    assert len(seen) == 2
    with both.client() as own:
        id = ids.pop()
        assert ended(own, id)["status"] == "succeeded"
    pictures = by_front(both, f"/v1/jobs/{id}/pictures/0")
    assert len(pictures) == 2
    assert len({answer.content for answers in pictures.values() for answer in answers}) == 1


def test_what_a_client_chose_holds_on_both_fronts(both, http):
    try:
        assert http.post("/sdapi/v1/options", json={"samples_format": "webp"}).status_code == 200
        said = by_front(both, "/sdapi/v1/options")
        assert len(said) == 2
        assert {answer.json()["samples_format"] for answers in said.values() for answer in answers} == {"webp"}
    finally:
        http.post("/sdapi/v1/options", json={"samples_format": "png"})


def test_a_job_is_cancelled_within_a_step(both, http):
    id, other = (submit(http, both, steps=900) for _ in range(2))
    told = []

    def watch():
        with both.client() as own, own.stream("GET", f"/v1/jobs/{id}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    told.append((time.monotonic(), json.loads(line.removeprefix("data: "))))

    thread = threading.Thread(target=watch)
    thread.start()
    runs(http, id)
    runs(http, other)
    http.delete(f"/v1/jobs/{id}")
    asked = time.monotonic()
    thread.join(10)
    when, last = told[-1]
    assert last["status"] == "cancelled"
    assert when - asked < 1
    assert last["step"] < 900
    after = [now["step"] for moment, now in told if moment > asked]
    assert last["step"] - min(after) <= 2, "no step begins once it is told"
    assert job(http, other)["status"] == "running", "the others do not notice"
    http.delete(f"/v1/jobs/{other}")
    assert ended(http, other, 5)["status"] == "cancelled"
    assert ended(http, submit(http, both), 10)["status"] == "succeeded", "both replicas are free"


def test_a_job_that_waits_is_cancelled_at_once(both, http):
    ids = [submit(http, both, steps=900) for _ in range(3)]
    http.delete(f"/v1/jobs/{ids[2]}")
    assert ended(http, ids[2], 5)["status"] == "cancelled"
    for id in ids[:2]:
        http.delete(f"/v1/jobs/{id}")
        assert ended(http, id, 10)["status"] == "cancelled"


def test_a_client_that_leaves_cancels_its_job(both, http):
    body = {"inputs": "a fox face", "parameters": {"num_inference_steps": 900}}
    with both.client() as own, pytest.raises(httpx.ReadTimeout):
        own.post(f"/models/{both.draws}", json=body, timeout=2)
    assert both.idle(http, 10)
    counted = http.get("/metrics").text
    assert f'vitrify_jobs_total{{kind="generate",model="{both.draws}",state="cancelled"}}' in counted


def test_a_stream_whose_client_leaves_is_cancelled(both, http):
    body = {"model": both.draws, "prompt": "a fox", "num_inference_steps": 900, "stream": True}
    with both.client() as own, own.stream("POST", "/v1/images/generations", json=body) as answer:
        next(answer.iter_lines())
    assert both.idle(http, 10)


def test_ray_batches_classifications(both, http, png):
    def count():
        """(calls, pictures that they labelled), by the histogram of batches."""
        lines = http.get("/metrics").text.splitlines()
        return tuple(
            sum(float(line.split()[-1]) for line in lines if line.startswith(f"vitrify_batch_pictures_{what}"))
            for what in ("count", "sum")
        )

    plain = http.post(f"/models/{both.labels}", content=png).json()
    calls, labelled = count()
    answers = []

    def ask():
        with both.client() as own:
            for _ in range(4):
                answers.append(own.post(f"/models/{both.labels}", content=png).json())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 64
    for answer in answers:
        assert [one["label"] for one in answer] == [one["label"] for one in plain]
        assert [one["score"] for one in answer] == pytest.approx([one["score"] for one in plain], abs=1e-4)
    now_calls, now = count()
    assert now - labelled == 64
    assert now_calls - calls <= 64 - 4, "some were labelled with others"


def test_a_replica_that_dies_loses_its_own_job_only(both, http, png):
    ids = [submit(http, both, steps=400) for _ in range(2)]
    for id in ids:
        runs(http, id)
    waiting = submit(http, both)
    victim, other = replicas(both, "Drawing")
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: "failed" in [job(http, id)["status"] for id in ids], 20)
    states = {job(http, id)["status"] for id in ids}
    assert states == {"failed", "running"}, "the others do not notice"
    lost = next(id for id in ids if job(http, id)["status"] == "failed")
    assert job(http, lost)["error"]["code"] == "worker_lost"
    assert len(http.post(f"/models/{both.labels}", content=png).json()) == 5
    assert ended(http, next(id for id in ids if id != lost), 120)["status"] == "succeeded"
    assert ended(http, waiting)["status"] == "succeeded"
    whole(both, http)
    assert other.is_running()
    assert victim.pid not in [one.pid for one in replicas(both, "Drawing")]


def test_a_replica_that_hangs_is_ended_at_its_job_s_deadline(both, http):
    http.post(f"/v1/models/{both.draws}/load")
    id = submit(http, both, steps=900, images=4, timeout=10)
    runs(http, id)
    hung = max(replicas(both, "Drawing"), key=lambda one: one.cpu_percent(0.3))
    hung.suspend()
    other = submit(http, both)
    assert ended(http, id)["error"]["code"] == "deadline"
    assert ended(http, other)["status"] == "succeeded"
    whole(both, http)
    hung.resume()  # what is stopped by a signal cannot even be told to end
    until(lambda: not hung.is_running())


def test_a_labelling_replica_that_dies_loses_nothing(both, http, png):
    """What shared a call is asked for once more, alone."""
    answers, stop = [], threading.Event()

    def ask():
        with both.client() as own:
            while not stop.is_set():
                answers.append(own.post(f"/models/{both.labels}", content=png).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    os.kill(replicas(both, "Labelling")[0].pid, signal.SIGKILL)
    time.sleep(3)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 16
    assert set(answers) == {200}
    whole(both, http)


def test_a_front_that_dies_is_replaced(both, http):
    os.kill(replicas(both, "Front")[0].pid, signal.SIGKILL)
    until(lambda: len(by_front(both, "/healthz", 20)) == 2)
    whole(both, http)


def test_the_core_that_dies_loses_no_job(both, http):
    running = [submit(http, both, steps=900) for _ in range(2)]
    for id in running:
        runs(http, id)
    queued = [submit(http, both, seed=number) for number in range(20)]
    (core,) = replicas(both, "Jobs")
    os.kill(core.pid, signal.SIGKILL)
    for id in queued:
        assert ended(http, id, 90)["status"] == "succeeded"
    for id in running:
        now = job(http, id)
        assert now["status"] == "interrupted"
        assert now["error"]["code"] == "interrupted"
    whole(both, http)


def test_events_go_on_after_the_core_was_lost(both, http):
    blocking = [submit(http, both, steps=900) for _ in range(2)]
    for id in blocking:
        runs(http, id)
    id = submit(http, both)
    seen = []

    def watch():
        with both.client() as own, own.stream("GET", f"/v1/jobs/{id}/events") as answer:
            seen.extend(line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: "))

    thread = threading.Thread(target=watch)
    thread.start()
    until(lambda: seen)
    os.kill(replicas(both, "Jobs")[0].pid, signal.SIGKILL)
    thread.join(90)
    assert not thread.is_alive()
    assert seen[0] == "queued"
    assert seen[-1] == "succeeded"
    whole(both, http)


def test_a_signal_ends_it_in_order_and_the_next_one_goes_on(start_server):
    state = None
    first = start_server("--queue", 64)
    with first.client() as http:
        running = submit(http, first, steps=900)
        also = submit(http, first, steps=900)
        for id in (running, also):
            runs(http, id)
        queued = [submit(http, first, seed=number) for number in range(5)]
        http.delete(f"/v1/jobs/{also}")
    state = first.log.parent / "state"
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(90) == 0
    second = start_server("--state", state)
    with second.client() as http:
        for id in queued:
            assert ended(http, id)["status"] == "succeeded"
        assert job(http, running)["status"] in ("succeeded", "interrupted")
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(90) == 0


def test_ray_scales_the_models(start_server):
    server = start_server("--replicas", "1-2")
    with server.client() as http:
        assert len(replicas(server, "Drawing")) == 1
        ids = [submit(http, server, steps=900) for _ in range(3)]
        until(lambda: len(replicas(server, "Drawing")) == 2, 60, "no second replica came")
        until(lambda: [job(http, id)["status"] for id in ids].count("running") == 2, 60)
        for id in ids:
            http.delete(f"/v1/jobs/{id}")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 0


def test_a_port_that_is_taken_is_refused(vitrify, diffusion_artifact):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = vitrify("serve", diffusion_artifact, "--engine", "ray", "--port", taken.getsockname()[1], "--json")
    assert done.code == 2
    assert "cannot be listened on" in done.out + done.err


def test_without_ray_it_says_what_to_install(python):
    done = python(
        "import sys; sys.modules['ray'] = None\n"
        "from vitrify.core.errors import MissingDependency\nfrom vitrify.serve.on_ray import run_on_ray\n"
        "try:\n    run_on_ray([], None)\nexcept MissingDependency as exc:\n    print(exc.fix)"
    )
    assert done.out.strip() == 'pip install "vitrify[ray]"', done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "No models"), ({"models": ["x"]}, "no keys"), ({"models": ["x"], "no_keys": True, "size_": 1}, "size_"),
        ({"models": ["x"], "no_keys": True, "replicas": "many"}, "no number"),
        ({"models": ["x"], "no_keys": True, "device": ["cpu", "cuda"]}, "devices are named"),
        ({"models": ["x"], "no_keys": True, "draw_batch": 2}, "in one call"),
        ({"models": ["x"], "no_keys": True, "port": 80}, "Ray's own"),
    ],
)  # fmt: skip
def test_arguments_of_a_config_that_make_no_sense(args, said):
    with pytest.raises(UsageError, match=said):
        build(args)


def test_options_of_another_engine_are_refused(vitrify, diffusion_artifact):
    done = vitrify("serve", diffusion_artifact, "--replicas", "2")
    assert done.code == 2
    assert "--engine ray" in done.out + done.err


def test_serve_run_takes_the_application(environment, diffusion_artifact, emotions_artifact, tmp_path):
    """As a cluster's operator starts it, on a cluster of its own here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, time, ray\nfrom ray import serve\nfrom vitrify.serve.on_ray import build\n"
        "ray.init(address='local', include_dashboard=False)\n"
        "serve.start(http_options={'port': int(sys.argv[1])})\n"
        "serve.run(build({'models': sys.argv[3:], 'no_keys': True, 'replicas': 1, 'state': sys.argv[2]}))\n"
        "print('there', flush=True)\nsys.stdin.read()\nserve.shutdown()\n"
    )
    command = [sys.executable, "-c", code, str(port), str(tmp_path / "state"), diffusion_artifact, emotions_artifact]
    with subprocess.Popen(
        [*map(str, command)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}"

        def ready():
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, 120)
        body = {"inputs": "a fox face", "parameters": {"num_inference_steps": 2}}
        named = {"Host": "cluster.example"}  # a cluster is called by its own name
        answer = httpx.post(f"{url}/models/{diffusion_artifact.name}", json=body, headers=named, timeout=60)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        process.stdin.close()
        process.wait(60)
