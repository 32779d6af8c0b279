"""How Ray chooses a replica to draw on: the least busy of all, where its own choice is the better of two."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import RequestRouter


class LeastBusy(RequestRouter):  # type: ignore[misc]
    """Drawing takes seconds: two pictures must not wait for one replica while another has nothing to do."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """All of them, as one rank, of which Ray takes the one with the shortest queue."""
        return [random.sample(candidate_replicas, len(candidate_replicas))]
