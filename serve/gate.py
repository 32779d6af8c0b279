"""What every protocol does with a request before and after it is a job: who asks, how much, and what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fastapi import Request as HttpRequest
from starlette.requests import HTTPConnection

from ..core.errors import VitrifyError
from .errors import BadRequest, RateLimited, RetryLater, TooLarge, Unsupported, status_of
from .interface import Core
from .jobs import Failure, Job, State
from .keys import Keys
from .requests import Request
from .settings import Settings

DEPTH = 32  # of JSON
_MOST = {b"[": 100_000, b"{": 100_000, b":": 100_000, b",": 5_000_000}  # in JSON: reading it takes memory and time
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AT_ONCE = 8  # of the largest bodies, that all clients together may be sending
_IN_A_THREAD = 1_000_000  # bytes of JSON whose reading others would notice
_CLIENTS = 10_000  # whose rates are remembered


class Gate:
    """Keys, rates and limits in front of the job core."""

    def __init__(self, core: Core, settings: Settings) -> None:
        self.core, self.settings = core, settings
        self.keys = Keys(settings.keys)
        self._coming = 0  # bytes of bodies that are being read
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def client(self, http: HTTPConnection) -> str:
        """Who asks. Called before a body is read.

        Raises:
            Unauthorized, RateLimited.
        """
        name = self.keys.client(http.headers.get("authorization"))
        if self.settings.rate:
            self._count(name if self.keys else (http.client.host if http.client else "?"))
        return name

    def _count(self, who: str) -> None:
        """A bucket that fills at `rate` a minute and holds as many."""
        rate, now = self.settings.rate, time.monotonic()
        tokens, last = self._buckets.pop(who, (rate, now))
        tokens = min(rate, tokens + (now - last) * rate / 60)
        self._buckets[who] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            after = (1 - tokens) * 60 / rate
            raise RateLimited(f"{rate:g} requests a minute are allowed.", f"Ask again in {after:.0f} s.", after)

    async def body(self, http: HttpRequest, limit: int | None = None) -> bytes:
        """The body, counted while it comes.

        Raises:
            TooLarge: more bytes than the limit, said or sent. RetryLater: others send too much. Unsupported: it is
                compressed.
        """
        limit = limit or self.settings.body
        packed = http.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            raise Unsupported(f"Bodies packed as {packed[:40]!r} are not taken.", "Send it as it is.")
        too_large = TooLarge(f"The body has more than {limit} bytes.", "Send less at once.")
        said = http.headers.get("content-length", "")
        if said.isdigit() and int(said) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async for part in http.stream():
                size += len(part)
                self._coming += len(part)
                if size > limit:
                    raise too_large
                if self._coming > _AT_ONCE * self.settings.body:
                    raise RetryLater("Others send too much at this moment.", "Ask again in a second.")
                parts.append(part)
            return b"".join(parts)
        finally:
            self._coming -= size

    async def json(self, http: HttpRequest, limit: int | None = None) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            BadRequest: it is none, or nested too deep. TooLarge.
        """
        return await read_json(await self.body(http, limit))

    async def run(self, http: HttpRequest, request: Request, client: str, *, timeout: float | None = None) -> Job:
        """Submit a job and wait for its result; a client that leaves cancels it.

        Raises:
            Failure: what it failed with. QueueFull, Draining and what else `Core.submit` raises.
        """
        job = await self.core.submit(request, client, timeout=timeout)
        return await self.wait(http, job)

    async def wait(self, http: HttpRequest, job: Job) -> Job:
        done = asyncio.ensure_future(self.core.finished(job))
        left = asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                self.core.cancel(job)
            job = await done
        finally:
            left.cancel()
            if not done.done():  # the server itself gives up on this request
                self.core.cancel(job)
                done.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left
        if job.state is not State.SUCCEEDED:
            raise Failure.of(job)
        return job


async def _left(http: HttpRequest) -> None:
    """Returns when the client has closed its connection."""
    while True:
        message: Mapping[str, Any] = await http.receive()
        if message["type"] == "http.disconnect":
            return


async def read_json(data: bytes) -> dict[str, Any]:
    """`parsed`, in a thread where it takes so long that others would notice."""
    return parsed(data) if len(data) < _IN_A_THREAD else await asyncio.to_thread(parsed, data)


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth.

    Raises:
        TooLarge: more of it than anything here needs. BadRequest: it is something else.
    """
    for mark, most in _MOST.items():
        if data.count(mark) > most:
            raise TooLarge(
                f"The JSON has more than {most} times {mark.decode()!r}.", "Send less at once, and tensors as bytes."
            )
    if _depth(data) > DEPTH:
        raise BadRequest(f"The JSON is nested deeper than {DEPTH}.", "Send a flat object.")
    try:
        given = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as exc:  # given bytes, json would take UTF-16 too, and half a surrogate pair
        raise BadRequest(f"The body is no UTF-8, at byte {exc.start}.", "Send a JSON object in UTF-8.") from exc
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"The body is no JSON: {exc}.", "Send a JSON object.") from exc
    if re.search(rb"\\u[dD]", data):  # half a surrogate pair is no text: nobody could encode it again
        try:
            json.dumps(given, ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            raise BadRequest("The JSON holds half a surrogate pair.", "Send whole characters.") from exc
    if not isinstance(given, dict):
        raise BadRequest(f"The body is a JSON {type(given).__name__}, not an object.", "Send a JSON object.")
    return given


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a name is there twice: readers differ in which of the two counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} is there twice")
    return found


def _depth(data: bytes) -> int:
    """How deep brackets are nested, at most; those in strings count too, which errs on the safe side."""
    depth = deepest = 0
    for byte in data.translate(None, _NO_BRACKETS):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > DEPTH:
                break
        else:
            depth = max(0, depth - 1)  # closing ones in strings must not hide what follows
    return deepest


def headers_of(exc: VitrifyError) -> dict[str, str]:
    """Retry-After where trying again helps; and a word to clients that would try again where it does not."""
    after = getattr(exc, "after", None)
    if after is not None:
        return {"Retry-After": str(max(1, round(after)))}
    return {"x-should-retry": "false"} if status_of(exc.code) >= 400 else {}
