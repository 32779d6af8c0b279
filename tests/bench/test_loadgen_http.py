"""LoadGen over HTTP: a real `vitrify serve`, its endpoints, and servers that are not what was meant."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.bench.loadgen.http import Connections
from vitrify.bench.loadgen.log import DETAIL
from vitrify.bench.loadgen.plan import LoadPlan
from vitrify.bench.loadgen.run import run_loadgen
from vitrify.core.errors import BadInput, RuntimeFailure, VitrifyError

pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen: vitrify[loadgen]")
pytest.importorskip("fastapi", reason="needs vitrify[serve]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
psutil = pytest.importorskip("psutil", reason="needs vitrify[bench]")
pytestmark = pytest.mark.slow  # servers, and runs of seconds against each


@contextlib.contextmanager
def served(folder: Path, environment: dict[str, str], *artifacts: Path) -> Iterator[tuple[str, int]]:
    """`vitrify serve` on a free port: its URL and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vitrify", "serve", *map(str, artifacts), "--port", str(port), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--threads", "1", "--state", str(folder / "state")], env=environment, stdout=log, stderr=log
        )
    try:
        wait_ready(f"http://127.0.0.1:{port}", process, folder / "log")
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, path: str = "/", key: str | None = None) -> bytes:
    with contextlib.closing(Connections(url, key)) as connections:
        return connections.call("GET", path)[1]


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(VitrifyError):
            ask(url, "/readyz")
            return
        time.sleep(0.2)
    pytest.fail(f"the server was not ready: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def url(
    emotions_artifact: Path, diffusion_artifact: Path, environment: dict[str, str], tmp_path_factory: Any
) -> Iterator[str]:
    """A server with both built-in models."""
    folder = tmp_path_factory.mktemp("server")
    with served(folder, environment, emotions_artifact, diffusion_artifact) as (where, _):
        yield where


@pytest.fixture(autouse=True)
def found_by_children(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VITRIFY_CACHE"):
        monkeypatch.setenv(name, environment[name])


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    for number, colour in enumerate(("yellow", "blue", "black", "white", "red")):
        Image.new("RGB", (60, 40), colour).save(folder / f"{number}.png")
    return folder


def answers(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return found


def test_tensors_files_and_the_runtime_give_the_same_labels(
    url: str, emotions_artifact: Path, faces: Path, tmp_path: Path
) -> None:
    name = emotions_artifact.name
    asked = {
        "runtime": None,
        "tensors": url,
        "files": f"{url}/models/{name}",
    }
    labels = {}
    for how, where in asked.items():
        plan = LoadPlan(str(emotions_artifact), "offline", "accuracy", where, pictures=str(faces))
        result = run_loadgen(plan, tmp_path / how)
        labels[how] = [row["label"] for row in answers(tmp_path / how)]
        assert result["system"].get("carries", "runtime") == how
        if where:
            assert result["system"]["url"].startswith(url)
    assert labels["tensors"] == labels["files"] == labels["runtime"]
    assert len(labels["tensors"]) == 5


@pytest.mark.parametrize("path", ["/v2/models/{}/infer", "/models/{}"])
def test_the_scenarios_over_http(url: str, path: str, emotions_artifact: Path, tmp_path: Path) -> None:
    where = url + path.format(emotions_artifact.name)
    offline = run_loadgen(LoadPlan(str(emotions_artifact), "offline", url=where, duration=1), tmp_path / "offline")
    assert offline["valid"] is True, offline["reasons"]
    assert offline["system"]["clients"] == 8
    server = LoadPlan(str(emotions_artifact), "server", url=where, duration=1, qps=10, latency_ms=20_000)
    found = run_loadgen(server, tmp_path / "server")
    assert found["met"]["min_duration"] is True
    assert found["met"]["performance_constraints"] is True
    assert found["over_latency"] == 0
    single = run_loadgen(LoadPlan(str(emotions_artifact), url=where, duration=1), tmp_path / "single")
    assert single["met"]["min_duration"] is True
    assert single["latency_ms"]["50"] > 0


def test_pictures_are_drawn_over_http(url: str, diffusion_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\na cat\n")
    plan = LoadPlan(
        str(diffusion_artifact), "offline", "accuracy", url, prompts=str(tmp_path / "prompts.txt"), steps=2, clients=2
    )
    result = run_loadgen(plan, tmp_path / "run")
    assert result["accuracy"]["samples"] == 2
    for row in answers(tmp_path / "run"):
        with Image.open(tmp_path / "run" / row["picture"]) as image:
            assert image.size == (64, 64) or image.width == image.height


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2/models/nope/infer", "answered 404"),
        ("/models/nope", "answered 404"),
        ("/v2/models/emoji/infer", "the artifact"),
        ("/models/emoji", "answered 422"),
    ],
)
def test_another_model_is_one_error(url: str, path: str, said: str, emotions_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        run_loadgen(LoadPlan(str(emotions_artifact), url=url + path), tmp_path / "run")
    assert caught.value.fix
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_not_there(emotions_artifact: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(BadInput, match="does not answer: Connection refused") as caught:
        run_loadgen(LoadPlan(str(emotions_artifact), url=nobody), tmp_path / "run")
    assert "vitrify serve" in caught.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_a_server_that_dies_ends_the_run(
    scenario: str, emotions_artifact: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with served(tmp_path, environment, emotions_artifact) as (where, pid):
        server = psutil.Process(pid)
        plan = LoadPlan(str(emotions_artifact), scenario, url=where)
        killed: list[float] = []

        def kill() -> None:
            until = time.monotonic() + 60
            while not (tmp_path / "run" / DETAIL).is_file() and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(1)
            killed.append(time.monotonic())
            for process in [*server.children(recursive=True), server]:
                os.kill(process.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(VitrifyError, match=r"127\.0\.0\.1"):
            run_loadgen(plan, tmp_path / "run")
        assert time.monotonic() - killed[0] < 20
        killer.join()
    assert (tmp_path / "run" / DETAIL).stat().st_size > 0


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers once a connection, then closes it without a word, as a server does with one that was idle."""

    protocol_version = "HTTP/1.1"
    status, body = 200, b"{}"
    keys: tuple[str | None, ...] | list[str | None] = ()  # that came with its requests

    def do_GET(self) -> None:
        type(self).keys = [*self.keys, self.headers["Authorization"]]
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def answering() -> Iterator[Callable[..., Any]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(**said: Any) -> tuple[str, type[_Answers]]:
        handler = type("Handler", (_Answers,), said)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_connection_that_the_server_closed_is_opened_again(answering: Callable[..., Any]) -> None:
    base, handler = answering()
    with contextlib.closing(Connections(base, None)) as connections:
        for _ in range(3):
            assert connections.call("GET", "/")[1] == b"{}"
            time.sleep(0.1)  # until its end of the connection is closed
    assert len(handler.keys) == 3


@pytest.mark.parametrize(
    ("status", "kind", "fix"),
    [
        (401, BadInput, "--key"),
        (404, BadInput, "/v1/models"),
        (422, BadInput, "kind"),
        (429, RuntimeFailure, "--clients"),
        (500, RuntimeFailure, "log"),
        (503, RuntimeFailure, "--clients"),
    ],
)
def test_a_refusal_is_one_error_with_what_to_do(
    status: int, kind: type[VitrifyError], fix: str, answering: Callable[..., Any]
) -> None:
    base, _ = answering(status=status, body=b'{"error": {"what": "No.", "fix": "Go."}}')
    with pytest.raises(kind, match=f"answered {status}: No. Go.") as caught:
        ask(base, key="vk")
    assert fix in caught.value.fix


def test_a_key_is_sent_where_there_is_one(answering: Callable[..., Any]) -> None:
    base, handler = answering()
    ask(base, key="vk_secret")
    assert handler.keys == ["Bearer vk_secret"]
    ask(base)
    assert handler.keys == ["Bearer vk_secret", None]
