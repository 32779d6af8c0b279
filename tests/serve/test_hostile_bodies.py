"""Bodies that are made to hurt, in every protocol: refused at once, in its own words, and nobody else notices."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from .hostile import (  # noqa: F401
    AT_ONCE,
    LIMIT,
    LITTLE,
    PROTOCOLS,
    body_of,
    connected,
    forget_peak,
    memory,
    path_of,
    reason,
    refused,
    talk,
    unharmed,
    warm,
)

# ---- bodies ----


@pytest.mark.parametrize("way", [*PROTOCOLS, "edits", "img2img", "png-info"])
def test_a_gigabyte_is_refused_by_its_length(server, way):
    more = {"edits": "/v1/images/edits", "img2img": "/sdapi/v1/img2img", "png-info": "/sdapi/v1/png-info"}
    path = more.get(way) or path_of(server, way)
    before, start = forget_peak(server), time.monotonic()
    status, said, _ = talk(server, f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 1000000000\n\n".encode())
    assert status == 413
    assert str(LIMIT) in said.decode()
    assert time.monotonic() - start < AT_ONCE
    assert memory(server) - before < LITTLE


@pytest.mark.parametrize("way", PROTOCOLS)
def test_a_gigabyte_without_a_length_is_read_to_the_limit(server, way):
    part = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    head = f"POST {path_of(server, way)} HTTP/1.1\nHost: 127.0.0.1\nTransfer-Encoding: chunked\n\n".encode()
    before, start = forget_peak(server), time.monotonic()
    status, said, sent = talk(server, head, (part for _ in range(1000)))
    assert status == 413
    assert str(LIMIT) in said.decode()
    assert sent < 2 * LIMIT
    assert time.monotonic() - start < 2 * AT_ONCE  # 64 MB have gone through a socket
    assert memory(server) - before < LIMIT + LITTLE


def test_an_ordinary_client_reads_why(server, http):
    """Although the server does not read on: the answer lies there when sending fails."""
    answer = http.post("/v1/jobs", content=(b" " * (1 << 20) for _ in range(1000)))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


@pytest.mark.parametrize(
    "lengths", ["Content-Length: -1", "Content-Length: 5\nContent-Length: 7", "Content-Length: 1e3",
                "Content-Length: 0x10", "Content-Length: ", "Content-Length: " + "9" * 5000,
                "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked"],
)  # fmt: skip
def test_lengths_that_make_no_sense(server, lengths):
    head = f"POST /v1/jobs HTTP/1.1\nHost: 127.0.0.1\n{lengths}\n\n{{}}"
    status, said, _ = talk(server, head.encode(), wait=2)
    assert 400 <= status < 500 or status == 501
    assert said


def test_chunks_that_make_no_sense(server):
    for chunk in (b"-5\r\nabcde\r\n", b"zz\r\n", b"f" * 40 + b"\r\n", b"5;" + b"a" * 100_000 + b"\r\n"):
        head = b"POST /v1/jobs HTTP/1.1\nHost: 127.0.0.1\nTransfer-Encoding: chunked\n\n"
        status, _, _ = talk(server, head, [chunk], wait=2)
        assert status == 0 or 400 <= status < 500


def test_a_length_that_is_too_long_or_too_short(server):
    """Too long: the server waits for the rest, and forgets it with the connection. Too short: it is half a job."""
    whole = json.dumps(body_of(server, "native")).encode()
    head = "POST /v1/jobs HTTP/1.1\nHost: 127.0.0.1\nContent-Length: {}\n\n"
    assert talk(server, head.format(len(whole) + 10).encode(), [whole], wait=0.5)[0] == 0
    status, said, _ = talk(server, head.format(len(whole) - 10).encode(), [whole], wait=5)
    assert status == 422
    assert b"JSON" in said


def test_slow_clients_do_not_hold_up_others(server, http):
    """Heads that never end, bodies that come byte by byte, connections on which nothing is said."""
    lines = [connected(server) for _ in range(240)]
    try:
        for number, line in enumerate(lines):
            if number % 3 == 0:
                line.sendall(b"GET /healthz HTTP/1.1\r\nX-A: ")
            elif number % 3 == 1:
                line.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{")
        for _ in range(3):
            for number, line in enumerate(lines):
                if number % 3 < 2:
                    line.sendall(b"a")
            start = time.monotonic()
            assert http.get("/healthz").status_code == 200
            assert http.post(path_of(server, "hf"), json=body_of(server, "hf")).status_code == 200
            assert time.monotonic() - start < 2 * AT_ONCE
    finally:
        for line in lines:
            line.close()


def test_heads_have_a_limit(server):
    for head in ("X-Large: " + "a" * 1_000_000, *["\n".join(f"X-{n}: {'a' * 50}" for n in range(20_000))]):
        start = time.monotonic()
        status, _, _ = talk(server, f"GET /healthz HTTP/1.1\nHost: 127.0.0.1\n{head}\n\n".encode(), wait=3)
        assert status in (0, 400, 431)
        assert time.monotonic() - start < AT_ONCE


@pytest.mark.parametrize("way", PROTOCOLS)
@pytest.mark.parametrize("packed", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_packed_bodies_are_not_unpacked(server, http, way, packed):
    bomb = gzip.compress(bytes(100_000_000), 1) if packed == "gzip" else b"{}"
    before = forget_peak(server)
    refused(server, http, way, bomb, "packed" if way != "v2" else "", headers={"Content-Encoding": packed})
    assert memory(server) - before < LITTLE


def test_forms(server, http, png):
    """Thousands of parts, one without an end, one whose head is a megabyte, two files."""
    mark = b"--x\r\n"
    file = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png + b"\r\n"
    field = b'Content-Disposition: form-data; name="f"\r\n\r\n1\r\n'
    forms = {
        "many": (mark + field) * 10_000 + b"--x--\r\n", "many files": (mark + file) * 3000 + b"--x--\r\n",
        "two files": (mark + file) * 2 + b"--x--\r\n", "no file": b"--x--\r\n", "no end": mark + file[:60],
        "long head": mark + b"X: " + b"a" * 1_000_000 + b"\r\n" + file + b"--x--\r\n",
        "many heads": mark + b"X: a\r\n" * 50_000 + file + b"--x--\r\n",
        "no name": mark + b"Content-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "nothing": b"", "noise": png,
        "large field": mark + field.replace(b"1", b"1" * 5_000_000) + b"--x--\r\n",
    }  # fmt: skip
    for form, content in forms.items():
        before, start = forget_peak(server), time.monotonic()
        answer = http.post(
            f"/models/{server.labels}", content=content, headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (413, 422), (form, answer.text[:300])
        assert reason("hf", answer), form
        assert time.monotonic() - start < AT_ONCE, form
        assert memory(server) - before < LITTLE + 3 * len(content), form
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 9999}",
    ):
        answer = http.post(f"/models/{server.labels}", content=forms["two files"], headers={"Content-Type": kind})
        assert answer.status_code == 422, (kind[:40], answer.text[:300])
