"""Paths, methods, keys and heads of callers who mean no good."""

from __future__ import annotations

import base64
import json
import time

import httpx
import pytest

from .hostile import (  # noqa: F401
    AT_ONCE,
    FIELDS,
    PROTOCOLS,
    body_of,
    connected,
    memory,
    path_of,
    reason,
    refused,
    talk,
    unharmed,
    warm,
)

# ---- paths and methods ----

ODD = ["..", "../..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%252e%252e%252f", "..%5c..%5c", "%00", "emoji%00",
       "%ff", "%c0%ae%c0%ae", "emoji%0d%0aX: 1", "%E2%80%AE", "a" * 5000, "C:%5c", "~root", "file:%2f%2f%2fetc",
       "*", "'", "%"]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[:30])
def test_odd_paths(server, odd):
    paths = ["/models/{}", "/v1/jobs/{}", "/v1/jobs/{}/pictures/0", "/v1/jobs/{}/events", "/v1/models/{}", "/page/{}",
             "/v2/models/{}", "/v2/models/emotions/versions/{}", "/sdapi/v1/{}", "/v1/images/{}", "/docs/{}",
             "/{}"]  # fmt: skip
    for path in paths:
        for method in ("GET", "POST", "DELETE"):
            start = time.monotonic()
            target = path.format(odd.replace(" ", "%20"))
            head = f"{method} {target} HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 2\nConnection: close\n\n{{}}"
            status, said, _ = talk(server, head.encode())
            assert 400 <= status < 500, (method, target[:60], status, said[:200])
            assert b"root:" not in said
            assert time.monotonic() - start < AT_ONCE


def test_a_path_of_100_kilobytes(server):
    status, _, _ = talk(server, f"POST /models/{'a' * 100_000} HTTP/1.1\nHost: 127.0.0.1\n\n".encode(), wait=3)
    assert status in (0, 400, 404, 405, 414, 431)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "X" * 100])
def test_other_methods(server, method):
    for way in PROTOCOLS:
        head = f"{method} {path_of(server, way)} HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n"
        status, said, _ = talk(server, head.encode(), wait=3)
        assert status in (400, 404, 405), (method, way, status, said[:200])


def test_no_http_at_all(server):
    two_hosts = b"GET / HTTP/1.1\nHost: a\nHost: b\n\n"
    for noise in (b"\x16\x03\x01\x02\0\x01\0", bytes(1000), b"GET\n\n", b"GET / HTTP/1.1\n\n", two_hosts):
        assert talk(server, noise, wait=2)[0] == 400
    assert talk(server, b"PRI * HTTP/2.0\n\nSM\n\n", wait=2)[0] in (400, 403, 404)


# ---- keys ----

NO_KEYS = ["", "Bearer", "Bearer wrong", "bearer vk_", "Basic", "Basic !!!!", "Basic YQ", "Basic /////w==",
           "Basic YTpi", "Basic \xe4\xf6\xfc", "Bearer \xe4\xf6\xfc", "Digest a=b", "Negotiate", "a" * 30_000,
           "Bearer " + "a" * 30_000, "Basic " + "QUFB" * 8000, "Basic Og=="]  # fmt: skip


@pytest.mark.parametrize("given", [None, *NO_KEYS], ids=lambda given: str(given)[:20])
def test_no_key_no_answer(guarded, given):
    """401 before the body is read, in the protocol's words; the key of nobody is not said back."""
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with httpx.Client(base_url=guarded.url, headers=headers) as http:
        for way in PROTOCOLS:
            start = time.monotonic()
            said = refused(guarded, http, way, b"[" * 1000, "key", (401,))
            assert time.monotonic() - start < AT_ONCE
            assert not given or len(given) < 20 or given[8:] not in said
        for path in (
            "/v1/jobs",
            "/v1/jobs/a",
            "/v1/models",
            "/v1/queue",
            "/v2",
            "/sdapi/v1/options",
            "/sdapi/v1/memory",
        ):
            answer = http.get(path)
            assert answer.status_code == 401, path
            assert "Basic" in answer.headers["www-authenticate"]
        assert http.delete("/v1/jobs/a").status_code == 401
        assert http.post("/sdapi/v1/interrupt").status_code == 401
        assert http.post(f"/v1/models/{guarded.draws}/unload").status_code == 401
        assert http.get("/healthz").status_code == 200


def test_keys_are_taken_in_both_forms(guarded):
    key = guarded.keys["ann"]
    basic = base64.b64encode(f"anyone:{key}".encode()).decode()
    for given in (f"Bearer {key}", f"bearer  {key}", f"Basic {basic}", f"BASIC {basic}"):
        assert httpx.get(f"{guarded.url}/v1/queue", headers={"Authorization": given}).status_code == 200
    for wrong in (key[:-1], key + "a", key.upper(), key.removeprefix("vk_"), f"{key}\x00"):
        status, _, _ = talk(
            guarded, f"GET /v1/queue HTTP/1.1\nHost: 127.0.0.1\nAuthorization: Bearer {wrong}\n\n".encode()
        )
        assert status in (400, 401)
    assert httpx.get(f"{guarded.url}/v1/queue?key={key}").status_code == 401


def test_jobs_of_others(guarded):
    """Those of another client are as if there were none, and nobody else's interrupt reaches them."""
    with guarded.client("ann") as ann, guarded.client("bob") as bob:
        body = body_of(guarded, "native", steps=400)
        job = ann.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"}).json()
        none = "0" * 32
        for path in ("", "/pictures/0", "/events"):
            theirs, nobodys = (bob.get(f"/v1/jobs/{id}{path}") for id in (job["id"], none))
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(job["id"], none) == nobodys.text
        assert bob.delete(f"/v1/jobs/{job['id']}").status_code == 404
        assert bob.post("/sdapi/v1/interrupt").json() == {}
        assert bob.post("/sdapi/v1/skip").json() == {}
        assert bob.get("/sdapi/v1/progress").json()["state"]["job"] == ""
        assert bob.get("/v1/queue").json()["mine"] == bob.get("/v1/jobs").json()["jobs"] == []
        other = bob.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"}).json()
        assert other["id"] != job["id"], "an Idempotency-Key is its client's own"
        bob.delete(f"/v1/jobs/{other['id']}")
        assert ann.get(f"/v1/jobs/{job['id']}").json()["status"] in ("queued", "running")
        ann.delete(f"/v1/jobs/{job['id']}")
        assert guarded.idle(ann)
        assert ann.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"


def test_sockets_want_a_key_too(guarded):
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
    from websockets.exceptions import WebSocketException

    with guarded.client("ann") as ann:
        job = ann.post("/v1/jobs", json=body_of(guarded, "native", steps=400)).json()
        address = guarded.url.replace("http", "ws") + job["links"]["socket"]
        for given in (None, "Bearer wrong", "Basic \xe4", f"Bearer {guarded.keys['bob']}"):
            headers = {"Authorization": given} if given else {}
            with pytest.raises((WebSocketException, EOFError)):
                client.connect(address, additional_headers=headers)
        assert ann.get(job["links"]["self"]).json()["status"] in ("queued", "running")
        mine = {"Authorization": f"Bearer {guarded.keys['ann']}"}
        with client.connect(address, additional_headers=mine) as web:
            web.send("x" * 1000)
            web.send("cancel")
            states = [json.loads(message)["status"] for message in web]
        assert states[-1] == "cancelled"


def test_a_rate_is_kept_before_a_body_is_read(start_server):
    server = start_server("--rate", 30, keys=("ann", "bob"))
    with server.client("ann") as ann, server.client("bob") as bob:
        answers = [ann.get("/v1/queue") for _ in range(40)]
        late = [answer for answer in answers if answer.status_code == 429]
        assert 5 <= len(late) <= 10
        assert all(1 <= int(answer.headers["retry-after"]) <= 3 for answer in late)
        for way in PROTOCOLS:
            head = (
                f"POST {path_of(server, way)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: Bearer {server.keys['ann']}\n"
            )
            status, said, sent = talk(server, f"{head}Content-Length: 1000000\n\n".encode())
            assert (status, sent) == (429, 0), way
            assert b"requests a minute" in said
        assert bob.get("/v1/queue").status_code == 200


# ---- other heads ----


def test_idempotency_keys(server, http):
    for key in ("", "a" * 201, "a" * 10_000):
        answer = http.post("/v1/jobs", json=body_of(server, "native"), headers={"Idempotency-Key": key})
        assert answer.status_code == 422, len(key)
        assert f"{len(key)} characters" in answer.json()["error"]["what"]
    for key in ("a" * 200, "'; DROP TABLE jobs; --", "\xe4\xf6\xfc", "../../a"):
        raw = {"Idempotency-Key": key.encode("latin-1")}
        first = http.post("/v1/jobs", json=body_of(server, "native"), headers=raw)
        again = http.post("/v1/jobs", json=body_of(server, "native"), headers=raw)
        assert first.status_code == again.status_code == 202
        assert first.json()["id"] == again.json()["id"]
        other = http.post("/v1/jobs", json=body_of(server, "native", steps=3), headers=raw)
        assert other.status_code in (409, 422)
        assert other.json()["error"]["code"] == "conflict"
    assert server.idle(http)


FOREIGN = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1.evil.example"},
           {"Origin": "http://localhost:1"}, {"Host": "evil.example"}, {"Host": "evil.example:80"},
           {"Host": "127.0.0.1.evil.example"}]  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_foreign_pages_are_refused(server, http, foreign):
    """What a page elsewhere makes a browser send: its own Origin, or a name that was bound to 127.0.0.1."""
    before = len(http.get("/v1/jobs", params={"limit": 500}).json()["jobs"])
    for way in FIELDS:
        answer = http.post(path_of(server, way), json=body_of(server, way), headers=foreign)
        assert answer.status_code == 403, (way, answer.text[:200])
        assert reason("native", answer)  # of all protocols: a browser asked, and no client of theirs
    assert http.delete("/v1/jobs/" + "0" * 32, headers=foreign).status_code == 403
    assert len(http.get("/v1/jobs", params={"limit": 500}).json()["jobs"]) == before


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_sockets_of_foreign_pages_are_refused(server, http, foreign):
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
    from websockets.exceptions import InvalidStatus

    job = http.post("/v1/jobs", json=body_of(server, "native")).json()
    host = foreign.get("Host", f"127.0.0.1:{server.url.rpartition(':')[2]}")
    address = f"ws://{host}{job['links']['socket']}"
    with connected(server) as line, pytest.raises(InvalidStatus) as refusal:
        client.connect(address, sock=line, origin=foreign.get("Origin"), proxy=None)
    assert refusal.value.response.status_code == 403
    assert server.idle(http)


def test_own_pages_are_served(server, http):
    port = server.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert http.post("/v1/jobs", json=body_of(server, "native"), headers=headers).status_code == 202
    assert server.idle(http)
