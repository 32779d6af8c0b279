"""The server process: settings to a running application, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from platformdirs import user_state_path

from ..core.errors import BadInput, UsageError
from ..pipelines.embeddings import read_embedding
from ..pipelines.load import open_artifact
from ..pipelines.offload import Wish
from ..pipelines.placing import parse_place, placed
from ..pipelines.presets import opened_with, preset_named
from ..pipelines.prompt_cache import Remember
from ..runtimes.base import Options
from ..runtimes.options import parse_options
from .app import create_app
from .catalogue import ModelInfo, catalogue
from .core import JobCore
from .dispatch import Dispatcher
from .hooks import Hooks
from .logs import set_up_logs
from .settings import Settings
from .work import Limits
from .worker import WorkerSettings

_BACKLOG = 2048  # connections that may wait to be taken
_LAST = 3  # seconds that connections have to close once the jobs are done
_HEADERS = 64 * 1024  # bytes


def make_core(folders: Sequence[Path], settings: Settings, state: Path, *, json_logs: bool = False) -> JobCore:
    """The job core for these artifacts.

    Raises:
        UsageError, BadInput, BadArtifact: what cannot be served.
    """
    models = models_for(folders, settings)
    paths = {name: info.path for name, info in models.items()}
    devices: list[str | None] = [*settings.device] or [None]
    workers = [worker_settings(settings, paths, device, json_logs=json_logs) for device in devices]
    return JobCore(models, state, limits_of(settings), partial(Dispatcher, workers), tuple(settings.pinned))


def models_for(folders: Sequence[Path], settings: Settings) -> dict[str, ModelInfo]:
    """What is served: the artifacts, and for each what of the LoRAs, hooks and embeddings is for it.

    Raises:
        UsageError, BadInput, BadArtifact, MissingDependency: what cannot be served, no folder of LoRAs, no such hook
            or preset, or a file that is no embedding.
    """
    if settings.lora_folder is not None and not settings.lora_folder.is_dir():
        raise BadInput(f"{settings.lora_folder} is no folder.", "Give the folder of the LoRAs with --lora-folder.")
    for file in settings.embedding:
        read_embedding(file)
    Wish.of(settings.offload, None)
    if settings.preset is not None:
        preset_named(settings.preset)
    models = catalogue(
        folders,
        lora_folder=_whole(settings.lora_folder),
        hooks=Hooks(settings.hook).names,
        preset=settings.preset,
    )
    components = dict.fromkeys(name for one in models.values() for name in open_artifact(one.path).components)
    placed(parse_place(settings.place or ""), components)  # a name may be of one model alone
    return models


def _whole(path: Path | None) -> Path | None:
    """As it is named from any folder: workers may run in another."""
    return None if path is None else path.resolve()


def worker_settings(
    settings: Settings, paths: Mapping[str, Path], device: str | None, *, json_logs: bool = False
) -> WorkerSettings:
    """Of a worker that holds these models."""
    options = parse_options(settings.runtime_option, Options(threads=settings.threads))
    options, offload = opened_with(settings.preset, options, settings.offload)
    return WorkerSettings(
        paths,
        device=device,
        runtime=settings.runtime,
        options=options,
        place=parse_place(settings.place or ""),
        offload=offload,
        remember=Remember(settings.prompt_bytes, settings.prompt_cache, settings.free_text_encoders),
        budget=settings.memory_budget,
        batch=settings.batch,
        pixels=settings.pixels,
        lora_folder=_whole(settings.lora_folder),
        hooks=tuple(settings.hook),
        embeddings=tuple(file.resolve() for file in settings.embedding),
        json_logs=json_logs,
    )


def limits_of(settings: Settings) -> Limits:
    return Limits(
        settings.queue, settings.queue_seconds, settings.timeout, settings.batch, settings.worker_memory,
        settings.age, settings.size, settings.draw_batch,
    )  # fmt: skip


def address_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run_server(folders: Sequence[Path], settings: Settings, *, json_logs: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; what runs then may finish within `settings.grace`.

    Raises:
        UsageError: the address is taken or not this machine's; another server has the state's folder. And what
            `make_core` raises.
    """
    with bound(settings.host, settings.port) as listening:
        port = int(listening.getsockname()[1])
        core = make_core(folders, settings, settings.state or default_state(port), json_logs=json_logs)
        set_up_logs(as_json=json_logs)
        asyncio.run(_serve(core, settings, listening, address_of(settings.host, port)))


async def _serve(core: JobCore, settings: Settings, listening: socket.socket, address: str) -> None:
    config = uvicorn.Config(
        create_app(core, settings),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST,
        h11_max_incomplete_event_size=_HEADERS,
        ws_max_size=_HEADERS,
    )
    await core.start()
    try:
        print(f"{address}  {', '.join(core.models)}", file=sys.stderr, flush=True)
        await Server(config, lambda: core.stop(settings.grace)).serve([listening])
    finally:
        await core.stop(0)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as exc:
        raise UsageError(f"{host}:{port} cannot be listened on: {exc}.", "Give another --port or --host.") from exc
    return made


def default_state(port: int) -> Path:
    """Where a server on this port keeps its jobs, unless it is told."""
    return user_state_path("vitrify") / "serve" / str(port)


class Server(uvicorn.Server):
    """uvicorn's, which lets the jobs finish before it closes its connections, and goes on to answer meanwhile.

    A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal."""
        self.should_exit = self.force_exit = self._asked
        self._asked = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._asked and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        drained = self._draining is not None and self._draining.done()
        return await super().on_tick(counter) or drained
