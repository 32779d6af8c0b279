"""The Open Inference Protocol, version 2: a classifier's own tensors, as JSON or as bytes after it, and its models.

Sources: the protocol's REST description and its binary tensor data extension, as KServe publishes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from .. import __version__
from ..core.errors import VitrifyError
from ..core.tensors import Array, TensorSpec, check_tensors
from .asked import Exact
from .catalogue import ModelInfo
from .errors import BadRequest, UnknownModel, Unsupported
from .fields import read
from .gate import Gate, parsed, read_json
from .requests import InferRequest
from .tensors_v2 import datatype_of, tensor_of

VERSION = "1"
"""Every model has this one."""
_LENGTH = "inference-header-content-length"
_NAME = 200  # characters
_EXTENSIONS = ["binary_tensor_data", "model_repository"]
_ANY: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


Size = Annotated[int, Field(ge=1, le=2**40)]


class InputParameters(Exact):
    binary_data_size: int | None = Field(None, ge=0)


class Input(Exact):
    """One tensor; its values are in `data`, flat or nested, or after the JSON."""

    name: str = Field(max_length=_NAME)
    shape: list[Size] = Field(max_length=16)
    datatype: str = Field(max_length=16)
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputParameters(Exact):
    binary_data: bool | None = None


class Output(Exact):
    name: str = Field(max_length=_NAME)
    parameters: OutputParameters | None = None


class Parameters(Exact):
    binary_data_output: bool | None = None
    timeout: int | None = Field(None, gt=0, description="Microseconds.")


class Inference(Exact):
    id: str | None = Field(None, max_length=_NAME)
    inputs: list[Input] = Field(min_length=1, max_length=64)
    outputs: list[Output] | None = Field(None, max_length=64)
    parameters: Parameters | None = None


class Index(Exact):
    ready: bool = False


class Unload(Exact):
    parameters: dict[str, bool] | None = None


def router(gate: Gate) -> APIRouter:
    """Routes below /v2."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    core = gate.core

    @routes.get("")
    async def server(http: Request) -> dict[str, Any]:
        """What this server is."""
        gate.client(http)
        return {"name": "vitrify", "version": __version__, "extensions": _EXTENSIONS}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """The server answers."""
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        """Every device has a worker that takes jobs."""
        now = (await core.view()).ready
        return JSONResponse({"ready": now}, 200 if now else 503)

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{version}")
    async def metadata(http: Request, name: str, version: str = VERSION) -> dict[str, Any]:
        """A model's tensors; none of models that do not take any. -1 stands for any size."""
        gate.client(http)
        info = _model(gate, name, version)
        return {
            "name": info.name, "versions": [VERSION], "platform": "vitrify",
            "inputs": _described(info.inputs or {}), "outputs": _described(info.outputs or {}),
        }  # fmt: skip

    @routes.get("/models/{name}/ready")
    @routes.get("/models/{name}/versions/{version}/ready")
    async def model_ready(http: Request, name: str, version: str = VERSION) -> JSONResponse:
        """It takes requests; where it is not loaded, the first of them loads it."""
        gate.client(http)
        info = _model(gate, name, version)
        now = (await core.view()).ready
        return JSONResponse({"name": info.name, "ready": now}, 200 if now else 503)

    @routes.post("/models/{name}/infer", response_model=None, openapi_extra=_ANY)
    @routes.post("/models/{name}/versions/{version}/infer", response_model=None, openapi_extra=_ANY)
    async def infer(http: Request, name: str, version: str = VERSION) -> Response:
        """Run a model's graph on tensors that were prepared by the client."""
        client = gate.client(http)
        info = _model(gate, name, version)
        info.check(InferRequest.kind)
        assert info.inputs is not None
        assert info.outputs is not None
        head, rest = _split(await gate.body(http), http.headers.get(_LENGTH))
        body = read(Inference, await read_json(head))
        outputs = _outputs(info.outputs, body)
        request = InferRequest(info.name, _tensors(info.inputs, body.inputs, rest))
        within = body.parameters.timeout if body.parameters is not None else None
        job = await gate.run(http, request, client, timeout=within / 1e6 if within else None)
        assert job.result is not None
        assert job.result.tensors is not None
        said = {"model_name": info.name, "model_version": VERSION} | ({"id": body.id} if body.id is not None else {})
        return _answer(said, {name: job.result.tensors[name] for name in outputs}, outputs)

    @routes.post("/repository/index", openapi_extra=_ANY)
    async def index(http: Request) -> list[dict[str, str]]:
        """What is served, and what of it is loaded."""
        gate.client(http)
        asked = read(Index, await _optional(gate, http))
        view = await core.view()
        models = [(name, bool(view.loaded(name))) for name in core.models]
        return [
            {"name": name, "version": VERSION, "state": "READY", "reason": ""}
            if loaded
            else {"name": name, "version": VERSION, "state": "UNAVAILABLE", "reason": "The first request loads it."}
            for name, loaded in models
            if loaded or not asked.ready
        ]

    @routes.post("/repository/models/{name}/load", openapi_extra=_ANY)
    async def load(http: Request, name: str) -> Response:
        """Load a model now."""
        gate.client(http)
        if (await _optional(gate, http)).get("parameters"):
            raise Unsupported("Models come from the server's own folders.", "Leave `parameters` out.")
        await core.open(name)
        return Response()

    @routes.post("/repository/models/{name}/unload", openapi_extra=_ANY)
    async def unload(http: Request, name: str) -> Response:
        """Free a model's memory, once what runs is done."""
        gate.client(http)
        read(Unload, await _optional(gate, http))  # unload_dependents: there are none
        core.close(name)
        return Response()

    return routes


def shape(exc: VitrifyError) -> dict[str, object]:
    """An error as the protocol has it."""
    return {"error": f"{exc.what} {exc.fix}".strip()}


def _model(gate: Gate, name: str, version: str) -> ModelInfo:
    """Raises UnknownModel."""
    info = gate.core.model(name)
    if version != VERSION:
        raise UnknownModel(f"{name} has no version {version[:40]!r}.", f"Its one version is {VERSION}.")
    return info


def _described(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": datatype_of(spec.dtype),
            "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
        }
        for name, spec in specs.items()
    ]


async def _optional(gate: Gate, http: Request) -> dict[str, Any]:
    data = await gate.body(http)
    return parsed(data) if data else {}


def _split(data: bytes, length: str | None) -> tuple[bytes, memoryview]:
    """The JSON, and the bytes after it.

    Raises:
        BadRequest: the header that says where the JSON ends is no such number.
    """
    if length is None:
        return data, memoryview(b"")
    if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > len(data):
        raise BadRequest(
            f"Inference-Header-Content-Length is {length[:40]!r}; the body has {len(data)} bytes.",
            "Give the bytes of the JSON alone.",
        )
    end = int(length)
    return data[:end], memoryview(data)[end:]


def _tensors(specs: Mapping[str, TensorSpec], inputs: list[Input], rest: memoryview) -> dict[str, Array]:
    """The request's tensors, as the model wants them; `rest` holds the bytes of the binary ones, in their order.

    Raises:
        BadInput, BadRequest: names, shapes, types or sizes are not those of the model.
    """
    tensors: dict[str, Array] = {}
    for given in inputs:
        if given.name not in specs or given.name in tensors:
            what = "is given twice" if given.name in tensors else "is not known"
            raise BadRequest(f"The input {given.name!r} {what}.", f"Give each of {', '.join(specs)} once.")
        size = given.parameters.binary_data_size if given.parameters is not None else None
        if (size is None) == (given.data is None):
            raise BadRequest(
                f"The input {given.name} needs `data` or `binary_data_size`, one of the two.", "Give its values once."
            )
        values: list[Any] | memoryview = given.data if given.data is not None else rest[:size]
        if size is not None:
            if size > len(rest):
                raise BadRequest(
                    f"The input {given.name} should have {size} bytes; {len(rest)} are left in the body.",
                    "Send all of them after the JSON, in the order of the inputs.",
                )
            rest = rest[size:]
        tensors[given.name] = tensor_of(given.name, specs[given.name], given.datatype, given.shape, values)
    missing = [name for name in specs if name not in tensors]
    if missing:
        raise BadRequest(f"The input {missing[0]} is missing.", f"Give each of {', '.join(specs)} once.")
    if len(rest):
        raise BadRequest(f"{len(rest)} bytes are left after the last tensor.", "Send what the sizes say.")
    check_tensors(specs, tensors)
    return tensors


def _outputs(specs: Mapping[str, TensorSpec], body: Inference) -> dict[str, bool]:
    """The outputs that are asked for, and whether each is to come as bytes.

    Raises:
        BadRequest: one is not known, or asked for twice.
    """
    default = bool(body.parameters is not None and body.parameters.binary_data_output)
    if not body.outputs:
        return dict.fromkeys(specs, default)
    wanted: dict[str, bool] = {}
    for one in body.outputs:
        if one.name not in specs or one.name in wanted:
            what = "is asked for twice" if one.name in wanted else "is not known"
            raise BadRequest(f"The output {one.name!r} {what}.", f"Ask for {', '.join(specs)}.")
        binary = one.parameters.binary_data if one.parameters is not None else None
        wanted[one.name] = default if binary is None else binary
    return wanted


def _answer(said: dict[str, Any], tensors: Mapping[str, Array], binary: Mapping[str, bool]) -> Response:
    """JSON, and after it the bytes of the outputs that are to be binary: little-endian, in C order.

    Raises:
        BadRequest: a value cannot be said in JSON.
    """
    outputs, parts = [], []
    for name, tensor in tensors.items():
        one: dict[str, Any] = {"name": name, "datatype": datatype_of(tensor.dtype.name), "shape": list(tensor.shape)}
        if binary[name]:
            parts.append(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = tensor.ravel().tolist()
        outputs.append(one)
    try:
        head = json.dumps(said | {"outputs": outputs}, allow_nan=False).encode()
    except ValueError as exc:
        raise BadRequest(
            "The model's answer holds NaN or infinity, which JSON cannot say.", "Ask for it with binary_data."
        ) from exc
    if not parts:
        return Response(head, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + b"".join(parts), media_type="application/octet-stream", headers=headers)
