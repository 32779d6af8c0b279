"""/v2 as tritonclient and KServe's clients use it, and as nobody should."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vitrify.core.tensors import DType, TensorSpec
from vitrify.pipelines.load import load
from vitrify.serve.errors import BadRequest, Unsupported
from vitrify.serve.tensors_v2 import tensor_of

SHAPE = [2, 3, 224, 224]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def logits(emotions_artifact, pixels):
    """What the graph gives without a server."""
    pipeline = load(emotions_artifact, "cpu")
    try:
        return pipeline.sessions["model"].run({"pixel_values": pixels})["logits"]
    finally:
        pipeline.close()


@pytest.fixture
def path(server):
    return f"/v2/models/{server.labels}"


def tensor(values, **more):
    """An input as tritonclient writes it, with its values in the JSON."""
    return {
        "name": "pixel_values",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    } | more


def binary(values, **more):
    """A body as tritonclient sends it by default, and its headers. more: of the JSON."""
    one = {"name": "pixel_values", "shape": list(values.shape), "datatype": "FP32"}
    one["parameters"] = {"binary_data_size": values.nbytes}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}} | more).encode()
    return {
        "content": head + values.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def answered(response):
    """(JSON, output -> array) of an answer, read as tritonclient reads it."""
    assert response.status_code == 200, response.text[:300]
    length = response.headers.get("inference-header-content-length")
    said = json.loads(response.content[: int(length)] if length else response.content)
    rest, found = response.content[int(length) :] if length else b"", {}
    for one in said["outputs"]:
        assert one["datatype"] == "FP32"
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(one["data"], np.float32)
        else:
            values, rest = np.frombuffer(rest[:size], np.float32), rest[size:]
        found[one["name"]] = values.reshape(one["shape"])
    assert not rest
    return said, found


def refused(response, *statuses):
    assert response.status_code in (statuses or (422,)), response.text[:300]
    said = response.json()
    assert set(said) == {"error"}
    assert said["error"]
    return said["error"]


def test_health_and_what_the_server_is(http):
    assert http.get("/v2/health/live").status_code == 200
    assert http.get("/v2/health/ready").status_code == 200
    said = http.get("/v2").json()
    assert said["name"] == "vitrify"
    assert "binary_tensor_data" in said["extensions"]


def test_metadata(http, server, path):
    said = http.get(path).json()
    assert said["name"] == server.labels
    assert said["versions"] == ["1"]
    assert said["inputs"] == [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]
    assert said["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]
    assert http.get(f"{path}/versions/1").json() == said
    assert http.get(f"{path}/ready").status_code == 200
    assert http.get(f"{path}/versions/1/ready").status_code == 200
    drawing = http.get(f"/v2/models/{server.draws}").json()
    assert (drawing["inputs"], drawing["outputs"]) == ([], [])


def test_json(http, path, pixels, logits):
    said, found = answered(http.post(f"{path}/infer", json={"id": "mine", "inputs": [tensor(pixels)]}))
    assert said["id"] == "mine"
    assert said["model_name"] == path.rpartition("/")[2]
    assert said["model_version"] == "1"
    assert np.abs(found["logits"] - logits).max() < 1e-4


def test_nested_json(http, path, pixels, logits):
    nested = tensor(pixels[:1], data=pixels[:1].tolist())
    _, found = answered(http.post(f"{path}/infer", json={"inputs": [nested]}))
    assert np.abs(found["logits"] - logits[:1]).max() < 1e-4


def test_binary_both_ways(http, path, pixels, logits):
    response = http.post(f"{path}/infer", **binary(pixels))
    assert response.headers["content-type"] == "application/octet-stream"
    said, found = answered(response)
    assert "id" not in said
    assert np.abs(found["logits"] - logits).max() < 1e-4
    assert found["logits"].shape == (2, 7)


def test_binary_one_way(http, path, pixels, logits):
    """Binary in and JSON out, and the other way round; by name of the output too."""
    _, found = answered(http.post(f"{path}/infer", **binary(pixels, parameters={})))
    assert np.abs(found["logits"] - logits).max() < 1e-4
    asked = [{"name": "logits", "parameters": {"binary_data": True}}]
    response = http.post(f"{path}/infer", json={"inputs": [tensor(pixels[:1])], "outputs": asked})
    assert "inference-header-content-length" in response.headers
    assert np.abs(answered(response)[1]["logits"] - logits[:1]).max() < 1e-4
    asked = [{"name": "logits", "parameters": {"binary_data": False}}]
    response = http.post(f"{path}/infer", **binary(pixels, outputs=asked))
    assert "inference-header-content-length" not in response.headers


def test_versions(http, path, pixels):
    answered(http.post(f"{path}/versions/1/infer", **binary(pixels[:1])))
    for way in (http.get(f"{path}/versions/2"), http.post(f"{path}/versions/2/infer", **binary(pixels[:1]))):
        assert "version" in refused(way, 404)


def test_what_is_not_finite_comes_as_bytes_only(http, path, pixels):
    bad = pixels[:1].copy()
    bad[:] = np.nan
    _, found = answered(http.post(f"{path}/infer", **binary(bad)))
    assert np.isnan(found["logits"]).all()
    assert "binary_data" in refused(http.post(f"{path}/infer", **binary(bad, parameters={})))


def test_the_repository(http, server):
    def state():
        return {one["name"]: one["state"] for one in http.post("/v2/repository/index").json()}

    assert set(state()) == {server.draws, server.labels}
    assert http.post(f"/v2/repository/models/{server.labels}/load", json={}).status_code == 200
    assert state()[server.labels] == "READY"
    ready = http.post("/v2/repository/index", json={"ready": True}).json()
    assert server.labels in [one["name"] for one in ready]
    body = {"parameters": {"unload_dependents": False}}
    assert http.post(f"/v2/repository/models/{server.labels}/unload", json=body).status_code == 200
    assert http.get(f"/v2/models/{server.labels}/ready").status_code == 200  # the next request loads it
    for what in ("load", "unload"):
        refused(http.post(f"/v2/repository/models/nothing/{what}"), 404)
    config = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
    refused(http.post(f"/v2/repository/models/{server.labels}/load", json=config))
    refused(http.post("/v2/repository/index", json={"ready": "yes"}))
    refused(http.post("/v2/repository/index", json={"other": 1}))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"}, {"name": 3}, {"name": "\ud800"}, {"datatype": "FP64"}, {"datatype": "FP16"},
        {"datatype": "float32"}, {"datatype": None}, {"shape": [1, 3, 224]}, {"shape": [3, 224, 224, 1]},
        {"shape": [1, 3, 224, -224]}, {"shape": [0, 3, 224, 224]}, {"shape": [10**18, 10**18, 10**18, 10**18]},
        {"shape": [1, 3, 224, 224.0]}, {"shape": []}, {"shape": None}, {"shape": [1] * 50},
        {"shape": [True, 3, 224, 224]},
        {"shape": [2, 3, 224, 112]}, {"data": [1.0]}, {"data": []}, {"data": ["1"] * 10}, {"data": [[1], [2, 3]]},
        {"data": {}}, {"data": None}, {"data": "AAAA"}, {"data": [None] * 4}, {"data": [10**400]},
        {"parameters": {"binary_data_size": 4}}, {"parameters": {"shared_memory_region": "x"}}, {"more": 1},
    ],
)  # fmt: skip
def test_inputs_that_make_no_sense(http, path, change):
    zeros = tensor(np.zeros([1, 3, 224, 224], np.float32))
    refused(http.post(f"{path}/infer", content=json.dumps({"inputs": [zeros | change]})))


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []}, {"inputs": {}}, {"inputs": None}, {"inputs": [3]}, {"outputs": [{"name": "other"}]},
        {"outputs": [{"name": "logits"}, {"name": "logits"}]}, {"outputs": "logits"}, {"id": 3}, {"id": "x" * 300},
        {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, {"parameters": {"sequence_id": 4}},
        {"parameters": {"binary_data_output": 1}}, {"parameters": {"timeout": -1}}, {"unknown": True}, {"id": "\ud800"},
    ],
)  # fmt: skip
def test_requests_that_make_no_sense(http, path, change):
    zeros = tensor(np.zeros([1, 3, 224, 224], np.float32))
    refused(http.post(f"{path}/infer", content=json.dumps({"inputs": [zeros]} | change)))


def test_the_same_input_twice(http, path):
    zeros = tensor(np.zeros([1, 3, 224, 224], np.float32))
    assert "twice" in refused(http.post(f"{path}/infer", json={"inputs": [zeros, zeros]}))


def test_bytes_that_do_not_fit(http, path, pixels):
    good = binary(pixels[:1])
    headers, content = good["headers"], good["content"]
    head = headers["Inference-Header-Content-Length"]
    assert "left in the body" in refused(http.post(f"{path}/infer", content=content[:-1], headers=headers))
    assert "left after" in refused(http.post(f"{path}/infer", content=content + b"x", headers=headers))
    for length in ("", "x", "-1", "1e3", "9" * 30, str(10**9), "0", str(int(head) - 1), str(int(head) + 1), "²"):
        headers = {"Inference-Header-Content-Length": length.encode()}
        refused(http.post(f"{path}/infer", content=good["content"], headers=headers))
    refused(http.post(f"{path}/infer", content=good["content"]))
    one = {"name": "pixel_values", "shape": [1, 3, 224, 224], "datatype": "FP32"}
    for size in (-4, 4, 3, 10**30, True, "4"):
        text = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": size}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        refused(http.post(f"{path}/infer", content=text + pixels[:1].tobytes(), headers=headers))


def test_compressed_bodies_are_not_taken(http, path, pixels):
    import gzip

    body = gzip.compress(json.dumps({"inputs": [tensor(pixels[:1])]}).encode())
    assert "packed" in refused(http.post(f"{path}/infer", content=body, headers={"Content-Encoding": "gzip"}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 50_000, b"\xff", b'{"inputs": [' + b"{" * 50])
def test_json_that_is_none(http, path, body):
    refused(http.post(f"{path}/infer", content=body))


def test_models_that_take_no_tensors(http, server, pixels):
    assert "does not infer" in refused(http.post(f"/v2/models/{server.draws}/infer", **binary(pixels[:1])))
    for name in ("nothing", "..%2fetc", "%00"):
        refused(http.get(f"/v2/models/{name}"), 404)
        refused(http.get(f"/v2/models/{name}/ready"), 404)
        refused(http.post(f"/v2/models/{name}/infer", **binary(pixels[:1])), 404)


def test_a_deadline(http, path, pixels):
    refused(http.post(f"{path}/infer", **binary(pixels, parameters={"timeout": 1})), 504)


def test_keys(guarded, pixels):
    path = f"/v2/models/{guarded.labels}"
    with guarded.client() as http:
        assert http.get("/v2/health/ready").status_code == 200
        refused(http.get("/v2"), 401)
        refused(http.get(path), 401)
        refused(http.post(f"{path}/infer", **binary(pixels[:1])), 401)
        refused(http.post("/v2/repository/index"), 401)
    with guarded.client("bob") as http:
        answered(http.post(f"{path}/infer", **binary(pixels[:1])))


def made(dtype, datatype, shape, values):
    return tensor_of("x", TensorSpec(DType(dtype), tuple("abcd"[: len(shape)])), datatype, shape, values)


@pytest.mark.parametrize(
    ("dtype", "datatype", "values"),
    [
        ("float32", "FP32", [1.5, -2.0]), ("float16", "FP16", [1.5, -2.0]), ("float64", "FP64", [1.5, -2.0]),
        ("int64", "INT64", [2**62, -(2**63)]), ("int32", "INT32", [7, -7]), ("int16", "INT16", [7, -7]),
        ("int8", "INT8", [127, -128]), ("uint8", "UINT8", [0, 255]), ("bool", "BOOL", [True, False]),
    ],
)  # fmt: skip
def test_types(dtype, datatype, values):
    expected = np.array(values, dtype)
    spelled = made(dtype, datatype, [2, 1], [[values[0]], [values[1]]])
    packed = made(dtype, datatype, [2, 1], memoryview(expected.astype(expected.dtype.newbyteorder("<")).tobytes()))
    for one in (spelled, packed):
        assert one.dtype == expected.dtype
        assert one.shape == (2, 1)
        assert (one.ravel() == expected).all()


@pytest.mark.parametrize(
    ("dtype", "datatype", "values"),
    [
        ("int8", "INT8", [128]), ("int8", "INT8", [-129]), ("uint8", "UINT8", [-1]), ("int64", "INT64", [2**63]),
        ("int64", "INT64", [1.0]), ("int64", "INT64", [2**70]), ("int32", "INT32", [True]), ("bool", "BOOL", [1]),
        ("bool", "BOOL", memoryview(b"\x02")), ("float32", "FP32", [True]), ("float32", "FP32", [1, 2]),
        ("float16", "FP16", memoryview(b"\0\0\0\0")), ("float32", "FP32", ["1"]), ("float32", "FP32", [[[]]]),
    ],
)  # fmt: skip
def test_values_are_never_wrapped_or_rounded(dtype, datatype, values):
    with pytest.raises(BadRequest):
        made(dtype, datatype, [1], values)


def test_bfloat16_is_said_to_be_missing():
    with pytest.raises(Unsupported, match="BF16"):
        made("bfloat16", "BF16", [1], memoryview(b"\0\0"))
