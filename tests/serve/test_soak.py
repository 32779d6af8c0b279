"""Twenty minutes of everything at once: memory stays flat, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

MINUTES = 20
GROWTH = 0.05  # of memory, from the fifth minute to the last


@pytest.mark.slow
def test_twenty_minutes_under_load(start_server: Callable[..., Any], png: bytes, record_property: Any) -> None:
    server = start_server("--queue", 16)
    seen: Counter[Any] = Counter()
    held: list[tuple[float, int, int]] = []
    end = time.monotonic() + MINUTES * 60

    async def label(http: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            seen["label", (await http.post(f"/models/{server.labels}", content=png)).status_code] += 1

    async def draw(http: httpx.AsyncClient, own: random.Random) -> None:
        while time.monotonic() < end:
            body = {"model": server.draws, "prompt": "a fox", "steps": own.randrange(1, 30), "previews": True}
            answer = await http.post("/v1/jobs", json=body)
            seen["job", answer.status_code] += 1
            if answer.status_code != 202:
                await asyncio.sleep(0.2)
                continue
            id = answer.json()["id"]
            if own.random() < 0.3:
                await asyncio.sleep(own.random())
                await http.delete(f"/v1/jobs/{id}")
            last: dict[str, Any] = {}
            async with http.stream("GET", f"/v1/jobs/{id}/events") as events:
                async for line in events.aiter_lines():
                    if line.startswith("event: "):
                        last = {"status": line.removeprefix("event: ")}
            seen["ended", last["status"]] += 1

    async def leave(http: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            body = {"prompt": "a", "size": "64x64", "num_inference_steps": 500}
            with pytest.raises(httpx.TimeoutException):
                await http.post("/v1/images/generations", json=body, timeout=0.5)
            seen["left"] += 1
            await asyncio.sleep(5)

    async def watch(http: httpx.AsyncClient) -> None:
        begin = time.monotonic()
        while time.monotonic() < end:
            await asyncio.sleep(10)
            assert (await http.get("/healthz")).status_code == 200
            held.append((time.monotonic() - begin, server.resident(), server.resident(server.worker())))

    async def all_of_it() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            drawing = [draw(http, random.Random(number)) for number in range(6)]
            await asyncio.gather(*(label(http) for _ in range(4)), *drawing, leave(http), watch(http))

    asyncio.run(all_of_it())
    record_property("seen", {str(key): count for key, count in seen.items()})
    statuses = {key[1] for key in seen if key[0] in ("label", "job")}
    assert statuses <= {200, 202, 429}
    assert {key[1] for key in seen if key[0] == "ended"} <= {"succeeded", "cancelled"}
    with server.client() as http:
        assert server.idle(http, 60)
    settled = [one for one in held if one[0] > 300]
    for which in (1, 2):
        first, last = settled[0][which], settled[-1][which]
        assert last < first * (1 + GROWTH), [one[which] // 1_000_000 for one in held]
