"""The commands that serve: the server, and the keys of its clients."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import screen
from .arguments import Json, Offline, Offload, OffloadOption, Place, RuntimeOption, RuntimeOptions, Threads
from .cli_saving import PresetOption
from .core.errors import MissingDependency, UsageError

_LIMITS, _SAFETY, _RAY, _WORDS = "Limits", "Who may call", "Engine", "LoRAs, embeddings and hooks"


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


def serve(
    models: Annotated[
        list[str], typer.Argument(help="Artifacts or models, ControlNets too; each is served under its folder's name.")
    ],
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder of jobs and results.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="One worker process each; default: the best one.")] = None,
    runtime: RuntimeOption = None,
    threads: Threads = 0,
    runtime_option: RuntimeOptions = None,
    place: Place = None,
    offload: OffloadOption = Offload.AUTO,
    preset: PresetOption = None,
    queue: Annotated[int | None, typer.Option(help="Jobs that may wait; default 32.", rich_help_panel=_LIMITS)] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that a job may take; default 600.", rich_help_panel=_LIMITS)
    ] = None,
    memory_budget: Annotated[
        int | None, typer.Option(help="Bytes of weights that may be open at once.", rich_help_panel=_LIMITS)
    ] = None,
    worker_memory: Annotated[
        int | None, typer.Option(help="Bytes of memory at which a worker is ended.", rich_help_panel=_LIMITS)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a minute for each client.", rich_help_panel=_LIMITS)
    ] = None,
    grace: Annotated[
        float | None, typer.Option(help="Seconds that what runs has at SIGTERM; default 30.", rich_help_panel=_LIMITS)
    ] = None,
    lora_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of LoRAs that clients may name, by their files' names.", rich_help_panel=_WORDS),
    ] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option(help="A textual inversion's file; several times.", rich_help_panel=_WORDS)
    ] = None,
    hook: Annotated[
        list[str] | None,
        typer.Option(help="A plugin, as wildcards:folder=DIR; several times.", rich_help_panel=_WORDS),
    ] = None,
    pin: Annotated[list[str] | None, typer.Option(help="Models that stay open.", rich_help_panel=_LIMITS)] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of keys, as vitrify serve-key writes it.", rich_help_panel=_SAFETY)
    ] = None,
    no_keys: Annotated[
        bool, typer.Option("--no-keys", help="Listen on a public address without keys.", rich_help_panel=_SAFETY)
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="local, or ray for replicas and several machines.", rich_help_panel=_RAY)
    ] = Engine.LOCAL,
    replicas: Annotated[
        str | None, typer.Option(help="Of each part: 2, or 1-4 to scale; default 2.", rich_help_panel=_RAY)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a cluster that runs; default: one is started here.", rich_help_panel=_RAY)
    ] = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Serve models over HTTP: a page, jobs, and the protocols of Hugging Face, OpenAI, A1111 and Open Inference V2."""
    try:
        from .serve.run import run_server
        from .serve.settings import Settings
    except ImportError as exc:
        raise MissingDependency(
            f"Serving needs {exc.name or exc}, which is not installed.", 'pip install "vitrify[serve]"'
        ) from exc
    from .export.resolve import artifact_for

    given: dict[str, Any] = {
        "host": host, "port": port, "state": state, "device": device, "runtime": runtime, "threads": threads or None,
        "runtime_option": runtime_option, "place": place, "offload": offload.value if offload != "auto" else None,
        "queue": queue, "timeout": timeout, "memory_budget": memory_budget, "worker_memory": worker_memory,
        "rate": rate, "grace": grace, "pinned": pin, "keys": keys, "no_keys": no_keys or None,
        "lora_folder": lora_folder, "embedding": embedding, "hook": hook, "preset": preset,
    }  # fmt: skip
    if engine is not Engine.RAY and (replicas or ray_address):
        raise UsageError("--replicas and --ray-address are of another engine.", "Add --engine ray.")
    settings = Settings.read(config, **given)
    with screen.progress() as report:
        folders = [artifact_for(model, offline=True if offline else None, report=report).root for model in models]
    if engine is Engine.RAY:
        from .serve.on_ray import run_on_ray

        run_on_ray(folders, settings, replicas=replicas or "2", address=ray_address, json_logs=json)
        return
    run_server(folders, settings, json_logs=json)


def serve_key(
    file: Annotated[Path, typer.Argument(help="The file of keys; made where it is not there.")],
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
) -> None:
    """Make a key for a client of the server, and print it once: the file keeps only its hash."""
    from .serve.keys import add_key

    print(add_key(file, name))
