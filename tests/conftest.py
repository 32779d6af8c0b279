"""What several rooms' tests share.

The built-in models, exported once a session into a folder of its own; the command line as users run it; and tiny random
models (`vit`, `unet`) whose weights a test gets in the dtype and shards that it asks for (`checkpoint`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it: no test reaches the hub

import numpy as np
import pytest
from filelock import FileLock

# a job that a shell started in the background ignores SIGINT, and so would every process that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session; where several processes share its tests, one folder for all of them."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def cache(shared: Path) -> Iterator[Path]:
    """An empty cache for this session. $VITRIFY_TEST_CACHE names one to keep, so that graphs are traced once a day."""
    kept = os.environ.get("VITRIFY_TEST_CACHE")
    folder = Path(kept) if kept else shared / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRIFY_CACHE", str(folder))
        patch.delenv("VITRIFY_CACHE_MAX", raising=False)
        yield folder


@pytest.fixture(scope="session")
def models(shared: Path) -> Path:
    """Copies of the built-in models: exports link to their weights, and no test shall reach those of the repository."""
    folder = shared / "models"
    with FileLock(shared / "models.lock"):
        for name in ("emoji-diffusion", "emoji-emotions"):
            if not (folder / name).exists():
                half = folder / f".{name}"
                shutil.copytree(ROOT / "demo/models" / name, half, dirs_exist_ok=True)
                half.rename(folder / name)
    return folder


@pytest.fixture(scope="session")
def diffusion_source(models: Path) -> Path:
    return models / "emoji-diffusion"


@pytest.fixture(scope="session")
def emotions_source(models: Path) -> Path:
    return models / "emoji-emotions"


@pytest.fixture(scope="session")
def diffusion_artifact(diffusion_source: Path, shared: Path) -> Path:
    """The diffusion model, exported and proved. Shared: copy it before changing anything."""
    return _exported(diffusion_source, shared / "diffusion" / "emoji")


@pytest.fixture(scope="session")
def cached_artifact(diffusion_source: Path, shared: Path) -> Path:
    """The diffusion model with the graph for kept features. Shared: copy it before changing anything."""
    return _exported(diffusion_source, shared / "cached" / "emoji", step_cache=1)


@pytest.fixture(scope="session")
def emotions_artifact(emotions_source: Path, shared: Path) -> Path:
    """The classifier, exported and proved. Shared: copy it before changing anything."""
    return _exported(emotions_source, shared / "emotions" / "emotions")


def _exported(source: Path, target: Path, **options: Any) -> Path:
    pytest.importorskip("torch", reason="needs the extra export")
    from vitrify.export.job import export_model

    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target.parent}.lock"):
        if not target.exists():
            export_model(source, target, verify=True, **options)
    return target


@pytest.fixture
def cell(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """cell(family, task, runtime): what a test compares, for the README's table (tests/feature_table.py)."""

    def note(family: str, task: str, runtime: str) -> None:
        record_property("cell", f"{family}/{task}/{runtime}")

    return note


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The one JSON document that a command that failed prints."""
        error: dict[str, str] = self.json["error"]
        return error


@pytest.fixture(scope="session")
def environment(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a child process needs to import this checkout's vitrify, whether or not it is installed."""
    link = tmp_path_factory.mktemp("link")
    (link / "vitrify").symlink_to(ROOT)
    path = os.pathsep.join(p for p in (str(link), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "VITRIFY_CACHE": str(cache), "PYTHONPATH": path, "COLUMNS": "200"}


@pytest.fixture(scope="session")
def vitrify(environment: dict[str, str]) -> Callable[..., Ran]:
    """Runs `vitrify ARGUMENTS` in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, **changed: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "vitrify", *map(str, arguments)],
            env=environment | changed,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def python(environment: dict[str, str]) -> Callable[..., Ran]:
    """Runs Python code in a fresh interpreter."""

    def run(code: str, *arguments: object, **changed: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment | changed,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Architecture:
    """graph: an ONNX file whose initializers have no data yet."""

    name: str
    spec: Any
    config: dict[str, Any]
    graph: Path


@dataclass(frozen=True)
class Model:
    """One checkpoint of an architecture.

    source: as the library saved it. module: the same weights in float32, what everything is compared with.
    entries: parameter name -> its bytes in the source. components: by format. copied: files that could not be linked.
    """

    architecture: Architecture
    source: Path
    module: Any
    entries: dict[str, Any]
    components: dict[str, Any]
    copied: list[str]

    def reference(
        self, tensors: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The library's own module on these inputs, with some weights changed."""
        import torch

        from vitrify.runtimes.torch.modules import KINDS

        spec, state = self.architecture.spec, self.module.state_dict()
        with torch.no_grad():
            kept = {name: state[name].clone() for name in changed or {}}
            for name, value in (changed or {}).items():
                state[name].copy_(torch.from_numpy(value))
            try:
                wrapper = KINDS[spec.kind][0](self.module)
                values = wrapper(*(torch.from_numpy(np.array(t)) for t in tensors.values()))
            finally:
                for name, value in kept.items():
                    state[name].copy_(value)
        return {n: v.numpy().copy() for n, v in zip(spec.outputs(self.architecture.config), values, strict=True)}


VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 8, "patch_size": 4, "num_channels": 3, "id2label": {str(i): f"l{i}" for i in range(5)},
    "label2id": {f"l{i}": i for i in range(5)},
}  # fmt: skip
UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 1, "block_out_channels": [8], "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4,
}  # fmt: skip


def _architecture(name: str, spec: Any, config: dict[str, Any], folder: Path) -> Architecture:
    import onnx_ir as ir

    from vitrify.export.graph import graph_from_module

    ir.save(graph_from_module(spec, config), folder / "model.onnx")
    return Architecture(name, spec, config, folder / "model.onnx")


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    pytest.importorskip("diffusers", reason="needs vitrify[export]")
    from vitrify.export.families.classifier import CLASSIFIER

    return _architecture("vit", CLASSIFIER[0], VIT, tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    pytest.importorskip("diffusers", reason="needs vitrify[export]")
    from vitrify.export.families.sd import SD

    spec = next(s for s in SD if s.name == "unet")
    return _architecture("unet", spec, UNET, tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """checkpoint(architecture, dtype="float32", shard="10GB") makes a new folder each time, so it may be damaged."""

    def make(architecture: Architecture, dtype: str = "float32", shard: str = "10GB") -> Model:
        import onnx_ir as ir
        import torch

        from vitrify.core.safetensors_header import open_checkpoint
        from vitrify.export.graph import quiet
        from vitrify.export.link import link_weights
        from vitrify.export.names import bind_module
        from vitrify.export.twin import random_module
        from vitrify.runtimes.torch.modules import no_bars

        spec, config = architecture.spec, architecture.config
        folder = tmp_path_factory.mktemp(architecture.name)
        source, root = folder / "source", folder / "artifact"
        module = random_module(spec, config)
        with torch.no_grad():
            for weight in (p for p in module.parameters() if p.ndim > 1):
                # as first drawn, queries and keys are so small that attention is an average, whatever they are
                weight.mul_(1.5 * weight[0].numel() ** -0.5 / weight.std())
        module = module.to(getattr(torch, dtype))
        with quiet(), no_bars():
            module.save_pretrained(source, max_shard_size=shard)
        entries = bind_module(module, open_checkpoint(source, (spec.stem,))).linked
        graph = ir.load(architecture.graph)
        weights, copied = link_weights(graph, entries, root, spec.name)
        ir.save(graph, root / spec.name / "model.onnx")
        components = {
            "onnx": spec.component(config, "onnx", f"{spec.name}/model.onnx", root, tuple(weights)),
            "torch": spec.component(config, "torch", "config.json", source, ()),
        }
        return Model(architecture, source, module.float(), dict(entries), components, copied)

    return make


@pytest.fixture(scope="session")
def vit_model(vit: Architecture, checkpoint: Callable[..., Model]) -> Model:
    """For reading only: it is shared."""
    return checkpoint(vit)


@pytest.fixture(scope="session")
def unet_model(unet: Architecture, checkpoint: Callable[..., Model]) -> Model:
    """For reading only: it is shared."""
    return checkpoint(unet)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts disks of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs (root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
