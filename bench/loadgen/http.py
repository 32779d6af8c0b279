"""What answers the queries of a LoadGen run over HTTP: a server's endpoints, asked as their real clients do.

A connection a thread, kept open. Prepared pixels go to the Open Inference Protocol V2 as bytes after the JSON, as
tritonclient sends them; files and prompts to POST /models/NAME, as huggingface_hub's InferenceClient sends them.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np

from ...core.errors import BadInput, RuntimeFailure, VitrifyError
from .answers import Answering, label_bytes, stacked
from .plan import FILES, STEPS, TENSORS, Endpoint, LoadPlan, setting

if TYPE_CHECKING:
    from ...core.artifact import Artifact
    from ...core.tensors import TensorSpec

_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {"float32": "FP32", "float16": "FP16", "float64": "FP64"}
_DTYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in _DATATYPES.items()}
_DROPPED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
_TIMEOUT = 600.0  # seconds, as a server's own limit of a job


class Connections:
    """Calls to one server; each thread has a connection of its own, which is kept open."""

    def __init__(self, base: str, key: str | None) -> None:
        self.base = base
        self._parts = urlsplit(base)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """The answer's headers and body.

        Raises:
            BadInput: nobody answers there, or not that request.
            RuntimeFailure: the server failed, or refused for want of room.
        """
        kept = getattr(self._own, "connection", None)
        connection = kept or self._open()
        try:
            try:
                connection.request(method, path, body, self._headers | dict(headers or {}))
                answer = connection.getresponse()
            except _DROPPED:
                if kept is None:
                    raise
                # a server closes connections that were idle for a while: every client then opens another
                connection.close()
                connection = self._open()
                connection.request(method, path, body, self._headers | dict(headers or {}))
                answer = connection.getresponse()
            data: bytes = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            said = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise BadInput(
                f"{self.base} does not answer: {said}.", "Start it (vitrify serve ARTIFACT), and check --url."
            ) from exc
        if answer.will_close:
            connection.close()
            self._own.connection = None
        if answer.status >= 300:
            raise _refused(f"{self.base}{path}", answer.status, data)
        return answer.headers, data

    def _open(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        opened = kind(self._parts.hostname or "", self._parts.port, timeout=_TIMEOUT)
        self._own.connection = opened
        self._all.append(opened)
        return opened

    def close(self) -> None:
        """Close those of all threads; none of them may be in a call."""
        for connection in self._all:
            connection.close()


def _refused(url: str, status: int, data: bytes) -> VitrifyError:
    said = data[:300].decode(errors="replace").strip()
    try:
        error = json.loads(data)["error"]
        said = error if isinstance(error, str) else f"{error['what']} {error['fix']}"
    except (ValueError, LookupError, TypeError):
        pass
    what = f"{url} answered {status}: {said[:300]}"
    if status == 404:
        return BadInput(what, "Name a model that is served there: see its /v1/models.")
    if status in (401, 403):
        return BadInput(what, "Give a key of the server with --key.")
    if status < 500 and status != 429:
        return BadInput(what, "Name the endpoint of a model of the artifact's kind.")
    if status in (429, 503):
        return RuntimeFailure(what, "Give fewer --clients or a lower --qps, or let the server take more.")
    return RuntimeFailure(what, "Look at the server's log.")


class TensorClient:
    """A classifier behind the Open Inference Protocol V2. Samples: float [3, height, width] that are prepared.

    Raises:
        BadInput: the server's model is not there, or takes other tensors than the artifact.
    """

    def __init__(self, connections: Connections, model: str, spec: TensorSpec, most: int) -> None:
        if spec.dtype.value not in _DATATYPES:
            raise BadInput(
                f"The model takes {spec.dtype.value}, which cannot be sent.", f"Give --url .../models/{model}."
            )
        self.most = most
        self._connections = connections
        self._datatype = _DATATYPES[spec.dtype.value]
        path = f"/v2/models/{quote(model, safe='')}"
        self._path = f"{path}/infer"
        said = _object(connections.call("GET", path)[1], path)
        inputs = said.get("inputs")
        shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
        wanted = {"name": "pixel_values", "datatype": self._datatype, "shape": shape}
        if inputs != [wanted]:
            raise BadInput(
                f"{connections.base}{path} takes {json.dumps(inputs)[:200]}, the artifact {json.dumps([wanted])}.",
                "Name the artifact that is served there.",
            )
        self.facts: dict[str, Any] = {"over": "http", "url": connections.base + self._path, "carries": TENSORS}

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        pixels = stacked(samples)
        raw = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
        request = {
            "inputs": [
                {
                    "name": "pixel_values", "shape": list(pixels.shape), "datatype": self._datatype,
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }  # fmt: skip
        head = json.dumps(request).encode()
        headers = {_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        said, data = self._connections.call("POST", self._path, head + raw, headers)
        return label_bytes(self._logits(said, data, len(samples)))

    def _logits(self, headers: http.client.HTTPMessage, data: bytes, count: int) -> Any:
        """float [count, labels]."""
        try:
            end = int(headers[_LENGTH] or "")
            output = json.loads(data[:end])["outputs"][0]
            return np.frombuffer(data[end:], _DTYPES[output["datatype"]]).reshape(count, -1)
        except (ValueError, LookupError, TypeError) as exc:
            raise _strange(self._connections.base + self._path, data) from exc

    def close(self) -> None:
        self._connections.close()


class FileClient:
    """A classifier that takes pictures as files, and prepares them itself. An answer: the number of the best label."""

    most = 1

    def __init__(self, connections: Connections, model: str, labels: Sequence[str]) -> None:
        self._connections = connections
        self._path = f"/models/{quote(model, safe='')}"
        self._numbers = {label: number for number, label in enumerate(labels)}
        self.facts: dict[str, Any] = {"over": "http", "url": connections.base + self._path, "carries": FILES}

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: bytes) -> bytes:
        _, data = self._connections.call("POST", self._path, sample, {"Content-Type": "application/octet-stream"})
        try:
            return self._numbers[json.loads(data)[0]["label"]].to_bytes(8, "little")
        except (ValueError, LookupError, TypeError) as exc:
            raise _strange(self._connections.base + self._path, data) from exc

    def close(self) -> None:
        self._connections.close()


class PromptClient:
    """A pipeline that draws. Samples: a prompt and its seed; an answer: the picture's own PNG file."""

    most = 1

    def __init__(self, connections: Connections, model: str, steps: int) -> None:
        self._connections = connections
        self._path = f"/models/{quote(model, safe='')}"
        self._steps = steps
        url = connections.base + self._path
        self.facts: dict[str, Any] = {"over": "http", "url": url, "carries": "prompts", "steps": steps}

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        return [self._one(*sample) for sample in samples]

    def _one(self, prompt: str, seed: int) -> bytes:
        asked = {"num_inference_steps": self._steps, "guidance_scale": 7.5, "seed": seed}
        body = json.dumps({"inputs": prompt, "parameters": asked}).encode()
        headers = {"Content-Type": "application/json", "Accept": "image/png"}
        _, data = self._connections.call("POST", self._path, body, headers)
        if not data.startswith(b"\x89PNG"):
            raise _strange(self._connections.base + self._path, data)
        return data

    def close(self) -> None:
        self._connections.close()


def _object(data: bytes, path: str) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise _strange(path, data)
    return said


def _strange(url: str, data: bytes) -> BadInput:
    return BadInput(
        f"{url} answered with something else than was asked for: {data[:100]!r}.",
        "Name the endpoint of a model of the artifact's kind, with the same labels.",
    )


def open_client(plan: LoadPlan, endpoint: Endpoint, artifact: Artifact, most: int) -> Answering:
    """The endpoint, asked as its clients do.

    Raises:
        BadInput: nobody answers there, or its model is another.
    """
    connections = Connections(endpoint.base, plan.key)
    try:
        if endpoint.carries == TENSORS:
            spec = artifact.components["model"].inputs["pixel_values"]
            return TensorClient(connections, endpoint.model, spec, most)
        if endpoint.carries == FILES:
            return FileClient(connections, endpoint.model, setting(artifact, "labels"))
        return PromptClient(connections, endpoint.model, plan.steps or STEPS)
    except BaseException:
        connections.close()
        raise
