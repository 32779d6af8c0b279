"""What the server is started with: flags over environment (VITRIFY_SERVE_...) over a TOML file over these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ..core.errors import UsageError

MB = 1_000_000


class Settings(BaseSettings):
    """Sizes are bytes, times seconds."""

    model_config = SettingsConfigDict(env_prefix="VITRIFY_SERVE_", extra="forbid", toml_file=None)

    host: str = Field("127.0.0.1", description="Address to listen on; others can reach only one that is not 127.0.0.1.")
    port: int = Field(8000, ge=0, le=65535)
    state: Path | None = Field(None, description="Folder of jobs and results; none: one for each port.")
    keys: Path | None = Field(None, description="File of API keys, as `vitrify serve-key` writes it.")
    no_keys: bool = Field(False, description="Listen on a public address although there are no keys.")
    device: list[str] = Field(default_factory=list, description="One worker process each; none: the best device.")
    runtime: str | None = None
    threads: int = Field(0, ge=0)
    runtime_option: list[str] = Field(default_factory=list, description="Options of a runtime, as compile=regional.")
    place: str | None = Field(None, description="Components on devices of their own, as vae=cpu.")
    offload: str = Field("auto", description="auto, none, components or weights.")
    preset: str | None = Field(None, description="exact, fast or small: how models are opened, and drawn with.")
    prompt_bytes: int = Field(64 * MB, ge=0, description="Encoded prompts that each model keeps in memory.")
    prompt_cache: bool = Field(False, description="Keep encoded prompts in the cache folder too.")
    free_text_encoders: bool = Field(False, description="Close text encoders once a prompt is encoded.")
    queue: int = Field(32, ge=1, description="Jobs that may wait, pictures and labels apart.")
    queue_seconds: float = Field(600, gt=0, description="Work that may wait, by the measured speed.")
    timeout: float = Field(600, gt=0, description="A job may take.")
    batch: int = Field(8, ge=1, description="Pictures that are labelled in one call.")
    draw_batch: int = Field(1, ge=1, description="Pictures of one shape that are drawn in one call, of several jobs.")
    rate: float = Field(0, ge=0, description="Requests a minute that a client may send; 0: no limit.")
    memory_budget: int = Field(0, ge=0, description="Weights that may be open at once; 0: no bound.")
    worker_memory: int = Field(0, ge=0, description="Resident memory at which a worker is killed; 0: no bound.")
    lora_folder: Path | None = Field(None, description="Folder of the LoRAs that clients may name.")
    hook: list[str] = Field(default_factory=list, description="Plugins of every drawing, as wildcards:folder=DIR.")
    embedding: list[Path] = Field(default_factory=list, description="Files of words that models learn.")
    pinned: list[str] = Field(default_factory=list, description="Models that stay open.")
    body: int = Field(64 * MB, gt=0, description="Largest body.")
    pixels: int = Field(64 * MB, gt=0, description="Largest picture, in pixels.")
    pictures: int = Field(256, gt=0, description="Most pictures in one request.")
    age: float = Field(24 * 3600, gt=0, description="Results are kept.")
    size: int = Field(2_000 * MB, gt=0, description="All results together.")
    grace: float = Field(30, ge=0, description="What runs may finish when the server is told to stop.")
    cors: list[str] = Field(default_factory=list, description="Origins of pages that may call it.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def read(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Flags that are None count as not given.

        Raises:
            UsageError: a setting is not known or makes no sense; the file is not TOML.
        """

        class Configured(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=config)

        if config is not None and not config.is_file():
            raise UsageError(f"{config} is no file.", "Give a TOML file, or leave --config out.")
        try:
            made: Settings = Configured(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as exc:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()[:5])
            raise UsageError(f"Settings that make no sense: {said}.", "See vitrify serve --help.") from exc
        except ValueError as exc:  # tomllib's
            raise UsageError(f"{config} is no TOML: {exc}.", "Look at that line.") from exc
        if made.public and made.keys is None and not made.no_keys:
            raise UsageError(
                f"{made.host} can be reached by others, and there are no keys.",
                "Give --keys FILE (vitrify serve-key FILE NAME makes one), or --no-keys if that is meant.",
            )
        return made

    @property
    def public(self) -> bool:
        """Whether others than this machine can reach it."""
        return self.host not in ("127.0.0.1", "localhost", "::1")
