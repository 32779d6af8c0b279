"""JSON and tensors that are made to hurt, in every protocol: refused at once, with the fault named."""

from __future__ import annotations

import json
import math
import struct

import pytest

from .hostile import FIELDS, LITTLE, PROTOCOLS, body_of, forget_peak, memory, path_of, refused, unharmed, warm  # noqa: F401

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


PICTURES = {
    "image": [1, True, [], {}, "", "a", "data:,", "http://127.0.0.1/a.png", "file:///etc/passwd", "A" * 1_000_000],
    "mask": [1, [], "", "AAAA"], "strength": ["a", 0, -1, 1.5, 10**400, [], True],
    "control": [1, {}, "a", [1], [{}], [[]], [{"net": "a"}], [{"net": "a", "picture": "A", "unknown": 1}],
                [{"net": "../a", "picture": "AAAA"}], [{"net": "a" * 5000, "picture": "A"}], [{}] * 9],
    "loras": [1, "a", [1], {"a": "b"}, {"a": []}, {"a": [1]}, {"a": [1, 2, 3]}, {"a": None}, {"a": {}}, {"a": True},
              {"../../etc/passwd": 1}, {"/etc/passwd": 1}, {"a" * 100_000: 1}, {"\0": 1}, {"a": 10**400}],
    "hooks": [1, "wildcards", {}, [1], [None], ["wildcards:folder=/"], ["../a"], ["a" * 100_000], ["a"] * 101],
    "prompt": ["<lora:../../etc/passwd:1>", "<lora:/etc/passwd:1>", "<lora::>", "<lora:" * 2000 + ">", "<lora:a:b>",
               "<lora:a" + " " * 19_000 + ":x>"],
}  # fmt: skip


@pytest.mark.parametrize("field", PICTURES)
def test_pictures_and_names_that_make_no_sense(server, http, field):
    before = forget_peak(server)
    for value in PICTURES[field]:
        said = refused(server, http, "native", json.dumps(body_of(server, "native", **{field: value})))
        assert "etc" not in said or "no LoRA" in said or "not fetched" in said, said
    assert memory(server) - before < LITTLE


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


def test_v2_texts_where_numbers_should_be(server, http):
    """numpy would give each of them the room of the longest: 400 GB."""
    before = forget_peak(server)
    inputs = [{"name": "pixel_values", "datatype": "FP32", "shape": [1, 3, 224, 224]}]
    inputs[0]["data"] = ["x" * 1_000_000, *["y"] * 100_000]
    refused(server, http, "v2", json.dumps({"inputs": inputs}).encode(), "no numbers")
    assert memory(server) - before < 2 * LITTLE
