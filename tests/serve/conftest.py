"""What the server's tests share: servers in processes of their own, with the built-in models behind real sockets."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

_START = 120  # seconds that a server has to be ready
ENGINE = os.environ.get("VITRIFY_TEST_ENGINE", "local")  # make test-ray sets it: the same tests, on Ray


@dataclass
class Server:
    """A server that answers. draws, labels: the names of its models. keys: client -> key."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    draws: str = "emoji"
    labels: str = "emotions"
    keys: dict[str, str] = field(default_factory=dict)
    state: Path = Path()
    at_once: int = 2 if ENGINE == "ray" else 1  # pictures that are drawn beside each other

    def client(self, name: str | None = None, **options: Any) -> Any:
        """An httpx client, with the key of `name` where one is given."""
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def children(self) -> list[int]:
        """The ids of its processes, its own not among them."""
        found = Path(f"/proc/{self.process.pid}/task")
        return [int(id) for task in found.iterdir() for id in (task / "children").read_text().split()]

    def worker(self) -> int:
        """The process that holds the models."""
        for id in self.children():
            if b"spawn_main" in Path(f"/proc/{id}/cmdline").read_bytes():
                return id
        raise AssertionError("there is no worker")

    def resident(self, pid: int | None = None) -> int:
        """Bytes of memory that the server, or another process, holds."""
        status = Path(f"/proc/{pid or self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def wait_ready(self) -> None:
        """Until /readyz says so."""
        _wait(self)

    def idle(self, http: Any, seconds: float = 20) -> bool:
        """Whether nothing of the caller runs or waits, within so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not http.get("/v1/queue").json()["mine"]:
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="session")
def start_server(
    diffusion_artifact: Path, emotions_artifact: Path, environment: dict[str, str], tmp_path_factory: Any
) -> Iterator[Callable[..., Server]]:
    """start_server(*OPTIONS, keys=("name", ...)) starts `vitrify serve` with both models; all end with the session.

    state: a folder that a server before had. models: others than these two. port: the one that it had.
    """
    running: list[Server] = []

    from vitrify.serve.keys import add_key

    def start(
        *options: object,
        keys: tuple[str, ...] = (),
        state: Path | None = None,
        models: tuple[Path, ...] = (diffusion_artifact, emotions_artifact),
        wait: bool = True,
    ) -> Server:
        folder = tmp_path_factory.mktemp("server")
        made = {name: add_key(folder / "keys.json", name) for name in keys}
        port = free_port()
        command = [sys.executable, "-m", "vitrify", "serve", *models]
        command += ["--port", port, "--state", state or folder / "state", "--device", "cpu", "--threads", 1]
        command += ["--engine", "ray", "--replicas", "2"] if ENGINE == "ray" else []
        command += options
        command += ["--keys", folder / "keys.json"] if keys else []
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen([*map(str, command)], env=environment, stdout=out, stderr=out)
        server = Server(f"http://127.0.0.1:{port}", process, log, diffusion_artifact.name, emotions_artifact.name)
        server.state = state or folder / "state"
        server.keys.update(made)
        running.append(server)
        if wait:
            _wait(server)
        return server

    try:
        yield start
    finally:
        for server in running:
            server.process.send_signal(signal.SIGTERM)
        for server in running:
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """Without keys, as a user starts it at home."""
    return start_server()


@pytest.fixture(scope="session")
def guarded(start_server: Callable[..., Server]) -> Server:
    """With the keys of `ann` and `bob`."""
    return start_server(keys=("ann", "bob"))


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> Callable[[str], bytes]:
    """picture(FORMAT) makes one with edges, so that labels depend on it."""
    return _picture


@pytest.fixture(scope="session")
def png() -> bytes:
    return _picture("PNG")


def _picture(form: str, size: tuple[int, int] = (96, 80)) -> bytes:
    image = Image.new("RGB", size, (250, 200, 0))
    image.paste((40, 40, 40), (20, 20, 40, 60))
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: Server) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    server.process.kill()
    pytest.fail(f"the server was not ready: {server.log.read_text(errors='replace')[-3000:]}")
