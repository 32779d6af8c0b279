"""What the tests of requests that are made to hurt share."""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path

import pytest

AT_ONCE = 1.0  # seconds
LIMIT = 64_000_000  # bytes of a body, as the server has it unless it is told
LITTLE = 24 << 20  # bytes that the front process may grow by above a body
FIELDS = {"native": "steps", "hf": "num_inference_steps", "openai": "num_inference_steps", "a1111": "steps"}
PROTOCOLS = (*FIELDS, "v2")


def path_of(server, way):
    return {
        "native": "/v1/jobs", "hf": f"/models/{server.draws}", "openai": "/v1/images/generations",
        "a1111": "/sdapi/v1/txt2img", "v2": f"/v2/models/{server.labels}/infer",
    }[way]  # fmt: skip


def body_of(server, way, **more):
    """Of a good request for a picture of two steps; more: fields, by the protocol's own names."""
    if way == "hf":
        return {"inputs": more.pop("prompt", "a fox"), "parameters": {"num_inference_steps": 2} | more}
    base = {"prompt": "a fox", FIELDS[way]: 2}
    return base | ({"model": server.draws} if way == "native" else {}) | more


def reason(way, answer):
    """What the error of this protocol says; it has the protocol's own shape."""
    said = answer.json()
    if way == "native":
        assert set(said["error"]) == {"code", "what", "fix"}
        return said["error"]["what"]
    if way == "hf":
        assert set(said) == {"error", "error_type"}
        return said["error"]
    if way == "openai":
        assert set(said["error"]) == {"message", "type", "param", "code"}
        return said["error"]["message"]
    if way == "a1111":
        assert set(said) == {"error", "detail", "body", "errors"}
        return said["detail"]
    assert set(said) == {"error"}
    return said["error"]


def refused(server, http, way, content, why="", statuses=(413, 422), **options):
    """Post it, and get a reason at once."""
    start = time.monotonic()
    answer = http.post(path_of(server, way), content=content, **options)
    took = time.monotonic() - start
    assert answer.status_code in statuses, (way, answer.status_code, answer.text[:300])
    said = reason(way, answer)
    assert said
    assert why.lower() in said.lower()
    assert len(answer.content) < 2000
    assert took < AT_ONCE, way
    return said


def memory(server, field="VmHWM"):
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak(server):
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return memory(server, "VmRSS")


def connected(server):
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20)


def talk(server, head, parts=(), wait=10.0):
    """Send a head as it is and then the parts, until there is an answer.

    Returns its status (0: the connection was closed without one), its body, and the bytes that were sent.
    """
    sent, answer = 0, b""
    with connected(server) as line:
        try:
            line.sendall(head.replace(b"\n", b"\r\n"))
            for part in parts:
                if select.select([line], [], [], 0)[0]:
                    break
                line.sendall(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered
        line.settimeout(wait)
        try:
            while part := line.recv(65536):
                answer += part
                top, _, rest = answer.partition(b"\r\n\r\n")
                if b"content-length" in top.lower():
                    length = int(top.lower().partition(b"content-length:")[2].split()[0])
                    if len(rest) >= length:
                        break
        except (TimeoutError, ConnectionResetError):
            pass
    status = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    return status, answer.partition(b"\r\n\r\n")[2], sent


@pytest.fixture(autouse=True)
def unharmed(server):
    """After each of these the server lives and answers at once."""
    yield
    assert server.process.poll() is None
    with server.client() as http:
        start = time.monotonic()
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").status_code == 200
        assert time.monotonic() - start < AT_ONCE


@pytest.fixture(scope="module", autouse=True)
def warm(server):
    """Both models are loaded, so that what follows measures the refusal."""
    with server.client() as http:
        for name in (server.draws, server.labels):
            assert http.post(f"/v1/models/{name}/load").status_code == 200
