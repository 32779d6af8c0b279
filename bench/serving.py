"""A server under load, timed from outside, beside the same model called without one.

Run as `python -m vitrify.bench.serving HOW ARTIFACT PICTURE`, where HOW is one of `HOW` below.
Clients are plain HTTP/1.1 connections that are kept open.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import VitrifyError

CALLS, CLIENTS, SECONDS, DRAWN = 500, 16, 20.0, 20
BATCHES = (1, 2, 4, 8, 16, 32)
_START = 120.0  # seconds that a server has to be ready


@contextlib.contextmanager
def served(*artifacts: Path) -> Iterator[int]:
    """`vitrify serve` with its default settings in a process of its own; its port, once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vitrify", "serve", *map(str, artifacts), "--port", "0", "--state", folder]
        process = subprocess.Popen([*command, "--json"], stderr=subprocess.PIPE, text=True)
        try:
            port = _port(process)
            until = time.monotonic() + _START
            while _get(port, "/readyz") != 200:
                if time.monotonic() > until:
                    raise VitrifyError("The server was not ready.", "Start it alone: vitrify serve ARTIFACT.")
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(60)


def _port(process: subprocess.Popen[str]) -> int:
    """From its first line; the rest of what it says is read and dropped."""
    assert process.stderr is not None
    said = process.stderr.readline()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        return int(said.split()[0].rpartition(":")[2])
    except (IndexError, ValueError) as exc:
        raise VitrifyError(f"The server said {said[:200]!r}.", "Start it alone: vitrify serve ARTIFACT.") from exc


def _get(port: int, path: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The answer's body; whatever is no success fails the case."""
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise VitrifyError(f"{path}: {answer.status} {data[:200]!r}", "Look at the server's log.")
        return data


def times(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of so many calls, one after the other, once it is warm."""
    for _ in range(max(5, count // 10)):
        call()
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def percentiles(name: str, taken: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {f"{name}_p50_ms": cuts[49] * 1e3, f"{name}_p99_ms": cuts[98] * 1e3}


def overhead(artifact: Path, picture: bytes) -> dict[str, float]:
    """A picture labelled through the server, beside the same in this process: open, prepare, run."""
    from io import BytesIO

    from ..pipelines.images import open_image
    from ..pipelines.load import load

    pipeline: Any = load(artifact, "cpu")
    with contextlib.closing(pipeline):
        direct = times(lambda: pipeline.run([open_image(BytesIO(picture))]), CALLS)
    with served(artifact) as port:
        client = Client(port)
        through = times(lambda: client.call("POST", f"/models/{artifact.name}", picture), CALLS)
    found = percentiles("direct", direct) | percentiles("served", through)
    return found | {f"overhead_{p}_ms": found[f"served_{p}_ms"] - found[f"direct_{p}_ms"] for p in ("p50", "p99")}


def throughput(artifact: Path, picture: bytes) -> dict[str, float]:
    """Pictures a second that clients get who all wait for each answer, beside the bare session's best batch."""
    import numpy as np

    from ..pipelines.load import load

    rates = {}
    pipeline: Any = load(artifact, "cpu")
    with contextlib.closing(pipeline):
        session = pipeline.sessions["model"]
        (name, spec), *_ = session.inputs.items()
        sides = [side if isinstance(side, int) else 224 for side in spec.shape[1:]]
        for batch in BATCHES:
            pixels = {name: np.zeros((batch, *sides), np.float32)}
            rates[batch] = batch / statistics.median(times(lambda pixels=pixels: session.run(pixels), 5))  # type: ignore[misc]
    best = max(rates, key=lambda batch: rates[batch])
    with served(artifact) as port:
        counts, failed = [0] * CLIENTS, list[Exception]()
        warm = threading.Event()
        over = threading.Event()

        def ask(number: int) -> None:
            client = Client(port)
            try:
                while not over.is_set():
                    client.call("POST", f"/models/{artifact.name}", picture)
                    counts[number] += warm.is_set()
            except (VitrifyError, OSError) as exc:
                failed.append(exc)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 4)
        warm.set()
        start = time.perf_counter()
        time.sleep(SECONDS)
        done, taken = sum(counts), time.perf_counter() - start
        over.set()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
    found = {"best_batch": float(best), "bare_per_s": rates[best], "served_per_s": done / taken}
    return found | {"share": found["served_per_s"] / rates[best]}


def health(artifact: Path, _: bytes) -> dict[str, float]:
    """How long /healthz takes while a picture of 256x256 is drawn."""
    with served(artifact) as port:
        body = {"model": artifact.name, "prompt": "a cat", "width": 256, "height": 256, "steps": 1}
        drawing = Client(port)
        _drawn(drawing, body)  # the model is open
        submitted = json.loads(drawing.call("POST", "/v1/jobs", json.dumps(body | {"steps": DRAWN}).encode()))
        client, taken = Client(port), []
        while True:
            start = time.perf_counter()
            client.call("GET", "/healthz")
            taken.append(time.perf_counter() - start)
            time.sleep(0.005)
            if len(taken) % 20 == 0:
                job = json.loads(drawing.call("GET", f"/v1/jobs/{submitted['id']}"))
                if job["status"] not in ("queued", "running"):
                    break
    if job["status"] != "succeeded":
        raise VitrifyError(f"The picture was not drawn: {job}.", "Draw it alone: vitrify generate.")
    return percentiles("healthz", taken) | {"step_ms": statistics.median(job["details"]["timings"]["steps"]) * 1e3}


def _drawn(client: Client, body: dict[str, object]) -> None:
    id = json.loads(client.call("POST", "/v1/jobs", json.dumps(body).encode()))["id"]
    while json.loads(client.call("GET", f"/v1/jobs/{id}"))["status"] in ("queued", "running"):
        time.sleep(0.1)


HOW: dict[str, Callable[[Path, bytes], dict[str, float]]] = {
    "overhead": overhead,
    "throughput": throughput,
    "health": health,
}


def main(arguments: Sequence[str] | None = None) -> int:
    from .measure import MARK

    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.serving")
    parser.add_argument("how", choices=HOW)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    try:
        print(MARK + json.dumps(HOW[given.how](given.artifact, given.picture.read_bytes())))
    except VitrifyError as exc:
        print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
