"""Where on disk the weights lie that a pipeline has in memory: the folder they came from, or one written now."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.cache import Cache
from ..core.errors import BadInput, UsageError
from ..core.progress import Report
from ..core.publish import disk_errors
from ..export.binding import load_tensor
from ..export.names import bind_module
from ..export.source import Source, SourceComponent, open_source
from .configs import differences, plain_config

_VARIANTS = (None, "fp16", "bf16")


class Origin(Protocol):
    """What an artifact is made from: a pipeline's own components, or one of its ControlNets."""

    name: str
    """The model's, of the folder or the repository that it was loaded from."""

    def fingerprint(self, report: Report) -> dict[str, Any]:
        """What tells it from any other: classes, configs, and a sha256 of the weights of each component."""

    def source(self, report: Report) -> AbstractContextManager[Source]:
        """The folder that it was loaded from, where that holds the very weights; else, for weights that were changed in
        memory or never lay on this disk, a temporary one.

        Raises:
            BadInput: it cannot be exported.
            DiskError: the folder cannot be written.
        """


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder beside the cache, whose files link to it; named so that the cache clears it after a crash.

    Raises:
        DiskError: it cannot be written.
    """
    kept = Cache().root / "saved"
    with disk_errors(kept):
        kept.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".pipeline.part-", dir=kept)
    with scratch as folder:
        yield Path(folder)


def told_path(config: Any) -> str | None:
    """The folder or the hub id that a pipeline or a component was loaded from, where its config tells."""
    given = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", None)
    return str(given) if given else None


def described(name: str, module: torch.nn.Module) -> list[Any]:
    """Its class, its config and a sha256 of its weights, as JSON.

    Raises:
        UsageError: the weights are not what it computes with (a LoRA beside them), or are not in memory.
    """
    if getattr(module, "peft_config", None):
        raise UsageError(
            f"A LoRA is loaded into the pipeline's {name}, beside its weights.",
            "Make it part of them first: fuse_lora and unload_lora_weights.",
        )
    state = module.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise UsageError(
            f"The weights of {name} are not in memory: the pipeline is offloaded.",
            "Compile it before enable_sequential_cpu_offload, or load it again.",
        )
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())  # numpy has no bfloat16
    config = {k: v for k, v in plain_config(module).items() if not k.startswith("_")}
    return [type(module).__name__, json.loads(json.dumps(config, default=str)), digest.hexdigest()]


def folder_of(modules: Mapping[str, torch.nn.Module], paths: Iterable[str | None], given: str) -> Source | None:
    """The first of these folders that holds the weights of the modules, in their precision or a finer one.

    Args:
        modules: by the folder that each has in a model. given: how the user named the model.
    """
    for path in dict.fromkeys(p for p in paths if p):
        if not Path(path).is_dir():
            continue
        for variant in _VARIANTS:
            with suppress(BadInput):  # no such variant, or nothing that can be exported
                source = open_source(Path(path), given=given, variant=variant)
                if all(c.spec.folder in modules and _same(modules[c.spec.folder], c) for c in source.components):
                    return source
    return None


def _same(module: torch.nn.Module, stored: SourceComponent) -> bool:
    """Whether a model's files hold what a component has in memory."""
    if differences(plain_config(module), stored.config):
        return False
    bindings = bind_module(module, stored.checkpoint)
    values: dict[str, Callable[[], torch.Tensor]] = {n: t.compute for n, t in bindings.transforms.items()}
    values |= {name: partial(load_tensor, entry) for name, entry in bindings.linked.items()}
    return all(
        torch.equal(values[name]().reshape(tensor.shape).to(tensor.dtype), tensor.detach().to("cpu"))
        for name, tensor in module.state_dict().items()
        if name in values
    )
