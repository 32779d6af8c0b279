"""Requests that are made to hurt, in every protocol: refused at once, in its own words, and nobody else notices."""

from __future__ import annotations

import base64
import gzip
import json
import math
import select
import socket
import struct
import time
from pathlib import Path

import httpx
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


# ---- JSON ----

TEXTS = {
    "deep lists": (b"[" * 100_000, "nested"), "deep objects": (b'{"a":' * 99_999, "nested"),
    "deep and closed": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
    "a million lists": (b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", "more than"),
    "six million numbers": (b'{"a":[' + b"1," * 6_000_000 + b"1]}", "more than"),
    "a number of ten million digits": (b'{"prompt":' + b"9" * 10_000_000 + b"}", "digits"),
    "NaN": (b'{"prompt":NaN}', ""), "infinity": (b'{"prompt":-Infinity}', ""),
    "a name twice": (b'{"prompt":"a","prompt":"b"}', "'prompt' is there twice"),
    "half a pair": (b'{"prompt":"\\ud800"}', "surrogate"), "half a name": (b'{"\\udfff":1}', "surrogate"),
    "half a pair as bytes": (b'{"prompt":"\xed\xa0\x80"}', "UTF-8"), "no UTF-8": (b'{"prompt":"\xff\xfe"}', "UTF-8"),
    "UTF-16": ('{"prompt":"a"}'.encode("utf-16"), "UTF-8"), "UTF-32": ('{"prompt":"a"}'.encode("utf-32"), "UTF-8"),
    "a list": (b"[1]", "list"), "a text": (b'"a"', "str"), "a number": (b"1", "int"), "null": (b"null", "NoneType"),
    "nothing": (b"", "JSON"), "blanks": (b"  \n ", "JSON"), "half": (b'{"prompt":"a', "JSON"), "noise": (b"\0\1\2", ""),
    "a form": (b"prompt=a&steps=2", "JSON"), "two of them": (b"{}{}", "JSON"), "bare": (b"{prompt:1}", "JSON"),
    "an unknown letter": (b'{"prompt":"\\x"}', "JSON"), "a NUL": (b'{"prompt":"\0"}', "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("way", PROTOCOLS)
@pytest.mark.parametrize("name", TEXTS)
def test_json_that_makes_no_sense(server, http, way, name):
    content, why = TEXTS[name]
    before = forget_peak(server)
    refused(server, http, way, content, why, headers={"Content-Type": "application/json"})
    assert memory(server) - before < LITTLE + 8 * len(content)


VALUES = [
    ("width", [7, 0, -8, 12, 10**9, 2**70, 64.5, "64", True, [], {}]), ("height", [0, -1, 4104, "a"]),
    ("steps", [0, -1, 1001, 10**9, 1.5, "two", [2], {}]), ("guidance", [-1, 101, "a", [], 10**400]),
    ("seed", [2**64, 2**70, -2, 1.5, "a", {}]), ("images", [0, -1, 17, 10**6, 1.5, "a"]),
    ("prompt", [None, 1, [], {}, "a" * 1_000_000]), ("negative_prompt", [1, [], "a" * 20_001]),
    ("scheduler", ["none such", "../../etc", 1, {}]), ("unknown", [1]), ("__proto__", [{}]), ("a" * 5000, [1]),
]  # fmt: skip
NAMES = {
    "native": {},
    "hf": {"steps": "num_inference_steps", "guidance": "guidance_scale", "images": None},
    "openai": {"steps": "num_inference_steps", "guidance": "guidance_scale", "images": "n", "scheduler": None,
               "width": None, "height": None},
    "a1111": {"guidance": "cfg_scale", "images": "batch_size", "scheduler": "sampler_name"},
}  # fmt: skip
LENIENT = {("a1111", "unknown"), ("a1111", "__proto__"), ("a1111", "a" * 5000)}  # its clients send everything
CONVERTED = {("a1111", "width", "64")}


@pytest.mark.parametrize("way", FIELDS)
@pytest.mark.parametrize(("field", "values"), VALUES, ids=[name[:20] for name, _ in VALUES])
def test_fields_that_make_no_sense(server, http, way, field, values):
    name = NAMES[way].get(field, field)
    if name is None or (way, field) in LENIENT:
        pytest.skip(f"{way} has no such field, or takes any")
    for value in values:
        if way == "hf" and field == "prompt":
            content = json.dumps({"inputs": value})
        else:
            content = json.dumps(body_of(server, way, **{name: value}))
        if (way, field, value) in [one for one in CONVERTED if type(one[2]) is type(value)]:
            continue
        said = refused(server, http, way, content)
        assert any(word in said for word in (name[:20], field[:20], "inputs", "sampler")), (value, said)


def test_numbers_beyond_all_bounds(server, http):
    for way in FIELDS:
        for name in ("steps", "guidance", "seed"):
            content = json.dumps(body_of(server, way, **{NAMES[way].get(name, name): 7})).replace(": 7", ": 1e400")
            assert "1e400" in content
            for value in ("1e400", "-1e400", "NaN", "Infinity"):
                refused(server, http, way, content.replace("1e400", value))
    for value in ("0", "-1", "1e400", '"a"', "-1e400", "NaN"):
        body = json.dumps(body_of(server, "native", timeout=7)).replace(": 7", f": {value}")
        refused(server, http, "native", body, "timeout")
    classify = {"model": server.labels, "pictures": ["x"], "threshold": 7}
    for value in ("1e400", "NaN"):
        refused(server, http, "native", json.dumps(classify).replace(": 7", f": {value}"), "threshold")
    for value in (2**70, 11, -11, 1.5, "a"):
        refused(server, http, "native", json.dumps(body_of(server, "native", priority=value)), "priority")
    last = json.dumps(body_of(server, "native", seed=2**64 - 1, images=2))
    answer = http.post("/v1/jobs", content=last)
    assert answer.status_code == 422, "its second seed would be 2^64"


def test_a1111_names_what_it_does_not_know(server, http):
    body = body_of(server, "a1111", unknown=1, __proto__=[1], refiner=[[[1]]])
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200
    assert {"unknown", "__proto__", "refiner"} <= set(json.loads(answer.json()["info"])["not_supported"])


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "\0", "a\0b", "\ufeff", "\u202eabc", "👩‍👩‍👧‍👦" * 200, "é" * 5000, "\U0010ffff",
     "\ud7ff\ue000", "a\r\n\t\x1b[31m", "'; DROP TABLE jobs; --",
     "{}{0}%s%n$(id)`id`", "<script>alert(1)</script>", "a)))]]] (b" * 500, "الْعَرَبِيَّة" * 100, "\u0301" * 5000],
    ids=range(17),
)  # fmt: skip
def test_strange_prompts_are_drawn(server, http, prompt):
    for way in FIELDS:
        body = body_of(server, way, prompt=prompt)
        answer = http.post(path_of(server, way), json=body)
        assert answer.status_code == (202 if way == "native" else 200), (way, answer.text[:300])
    assert server.idle(http)
    job = http.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]
    assert job["status"] == "succeeded"
    assert job["details"]["parameters"][0]["prompt"] == prompt


# ---- tensors ----


def tensor(shape=(1, 3, 224, 224), **more):
    return {"name": "pixel_values", "datatype": "FP32", "shape": list(shape)} | more


ROW = 3 * 224 * 224 * 4  # bytes


@pytest.mark.parametrize("length", ["-1", "1e3", "", "abc", "99999999", "9" * 5000, "0x10", "٣", "5, 6"])
def test_v2_heads_that_lie(server, http, length):
    headers = {"Inference-Header-Content-Length": length.encode()}
    refused(server, http, "v2", b'{"inputs":[]}' + bytes(100), "Inference-Header-Content-Length", headers=headers)


@pytest.mark.parametrize(
    "given",
    [{"parameters": {"binary_data_size": size}} for size in (0, 1, ROW - 1, ROW + 4, 2**40, 2**70, -4, 1.5, "a", None)]
    + [{"shape": shape} for shape in ([2**40, 2**40, 1, 1], [2**40] * 4, [2**63, 1, 1, 1], [0, 3, 224, 224],
                                      [-1, 3, 224, 224], [2, 3, 224, 224], [1, 3, 448, 112], [1, 3, 448, 448], [],
                                      [1] * 17, [1, 3, 224.5, 224], ["1", 3, 224, 224], [150528], [True, 3, 224, 224])]
    + [{"datatype": kind} for kind in ("FP64", "FP16", "INT8", "BYTES", "BOOL", "fp32", "", "x" * 9999, 1)]
    + [{"name": name} for name in ("", "pixels", "../a", "x" * 9999, 1)] + [{"unknown": 1}, {"data": [1.0]}],
    ids=str,
)  # fmt: skip
def test_v2_tensors_that_lie(server, http, given):
    one = tensor(**({"parameters": {"binary_data_size": ROW}} | given))
    head = json.dumps({"inputs": [one]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    before = forget_peak(server)
    refused(server, http, "v2", head + bytes(ROW), headers=headers)
    assert memory(server) - before < LITTLE


def test_v2_texts_that_lie_of_their_length(server, http):
    for length in (0, 5, 2**31, 2**32 - 1):
        rest = struct.pack("<I", length) + b"abc"
        one = tensor(shape=[1], datatype="BYTES", parameters={"binary_data_size": len(rest)})
        head = json.dumps({"inputs": [one]}).encode()
        refused(server, http, "v2", head + rest, headers={"Inference-Header-Content-Length": str(len(head))})


@pytest.mark.parametrize(
    "data",
    [[], [1.0], [[1.0], [1.0, 2.0]], ["1"] * 4, [None], [True] * 4, {}, "abcd", [{}], [10**400] * 4, [[[[[[[1]]]]]]]],
    ids=lambda data: str(data)[:20],
)
def test_v2_values_that_are_none(server, http, data):
    refused(server, http, "v2", json.dumps({"inputs": [tensor(data=data)]}))


def test_v2_not_a_number(server, http):
    """NaN goes in and out as bytes; in JSON it has no name. The next one to ask gets numbers."""
    for value in (math.nan, math.inf):
        for binary in (True, False):
            one = tensor(parameters={"binary_data_size": ROW})
            head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": binary}}).encode()
            content = head + struct.pack("<f", value) * (ROW // 4)
            headers = {"Inference-Header-Content-Length": str(len(head))}
            if binary:
                assert http.post(path_of(server, "v2"), content=content, headers=headers).status_code == 200
            else:
                refused(server, http, "v2", content, "NaN", headers=headers)
    zeros = http.post(path_of(server, "v2"), json={"inputs": [tensor(data=[0.0] * (ROW // 4))]})
    assert all(math.isfinite(value) for value in zeros.json()["outputs"][0]["data"])


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
