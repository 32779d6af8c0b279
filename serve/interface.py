"""What every protocol may ask of the job core: the core of this process, or one that is reached through Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping

from .catalogue import ModelInfo
from .errors import UnknownModel
from .jobs import Job, Picture
from .messages import Opened
from .requests import Request
from .work import View


class Core(ABC):
    """Jobs of all protocols. models: name -> what is served."""

    models: Mapping[str, ModelInfo]

    def model(self, name: str) -> ModelInfo:
        """Raises UnknownModel."""
        if name not in self.models:
            raise UnknownModel(f"No model {name[:80]!r} is served.", f"Ask for one of {', '.join(self.models)}.")
        return self.models[name]

    @abstractmethod
    async def view(self) -> View:
        """What runs, waits and is loaded now."""

    @abstractmethod
    async def metrics(self) -> bytes:
        """In the text format of Prometheus."""

    @abstractmethod
    async def submit(
        self,
        request: Request,
        client: str,
        *,
        durable: bool = False,
        key: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Job:
        """Let a job in, or say at once why not. With a `key` that was used before, the job that there is.

        Args:
            durable: it outlives its connection and the server. timeout: seconds; None for the server's own.

        Raises:
            QueueFull, Draining: nothing was done. UnknownModel, Unsupported, Conflict, DiskError.
        """

    @abstractmethod
    async def get(self, id: str, client: str) -> Job:
        """A job that this client may see.

        Raises:
            UnknownJob, ExpiredJob.
        """

    @abstractmethod
    async def picture(self, job: Job, number: int) -> Picture:
        """A picture that it gave, read from the disk.

        Raises:
            IndexError: there are fewer. ExpiredJob: it was removed just now.
        """

    @abstractmethod
    async def listed(self, client: str, limit: int = 50) -> list[Job]:
        """The client's newest durable jobs, the last first."""

    @abstractmethod
    def events(self, job: Job) -> AsyncIterator[Job]:
        """The job each time that it changed, first as it is; ends when it does. Steps may be skipped, the end never."""

    @abstractmethod
    async def finished(self, job: Job) -> Job:
        """Wait for its end."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Stop it within a step; nothing where it has ended."""

    @abstractmethod
    async def open(self, name: str, *, pinned: bool = False) -> Opened:
        """Load a model. Raises UnknownModel, Failure."""

    @abstractmethod
    def close(self, name: str) -> None:
        """Unload a model, once what runs is done. Raises UnknownModel."""

    @abstractmethod
    async def options(self, client: str) -> dict[str, str]:
        """What this client has chosen, by name."""

    @abstractmethod
    async def set_options(self, client: str, chosen: Mapping[str, str]) -> None:
        """Remember what it chooses, besides what it chose before."""
