"""Which tools are timed: their environments, the formats that they make of the model, and the rows.

A new tool is a file here with `opener`, a line in the tables, and a requirements file where no environment fits.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import BadInput
from ...core.machine import cpu_info, usable_cores
from ..preparing import OFFLINE, is_made, required

HERE = Path(__file__).resolve().parent
IDENTICAL_DB = 120.0  # what equal pictures count as: more than one value that differs by one, 101 dB at 256x256


def home(work: Path) -> Path:
    """Where all of this lies."""
    return work / "peers"


def source(work: Path) -> Path:
    """The model that every tool is given."""
    return home(work) / "model"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with what a pinned file beside this one names.

    imports: modules that must import for it to count as built. variables: for the installation. without: what is
    removed again.
    """

    name: str
    imports: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)
    without: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        return HERE / f"{self.name}.txt"

    def folder(self, work: Path) -> Path:
        return home(work) / "environments" / self.name

    def python(self, work: Path) -> Path:
        return self.folder(work) / "bin" / "python"

    def made_from(self) -> dict[str, str]:
        """What decides what it holds."""
        return {"requirements": self.requirements.read_text(), "python": platform.python_version()}

    def required(self, work: Path) -> None:
        """Raises BadInput where it was not built, or not from these pins, with the reason."""
        if is_made(self.folder(work), self.made_from()):
            return
        build = f"python -m vitrify.bench.peers.environments --work {work} --only {self.name}"
        if not self.folder(work).exists() and not _was_tried(self.folder(work)):
            raise BadInput(f"The environment {self.name} is not there.", build)
        required(self.folder(work))
        raise BadInput(f"The environment {self.name} was built from other pins or by another Python.", build)


def _was_tried(folder: Path) -> bool:
    return folder.with_name(f"{folder.name}.made.json").exists()


@dataclass(frozen=True)
class Format:
    """What a tool's own exporter makes of the model, once.

    environment: None is vitrify's own. words: the exporter's command, after that environment's Python, with {bin} for
    the folder of its commands, {source} and {target}. of: another format that it starts from; empty for the model.
    """

    name: str
    environment: Environment | None
    words: tuple[str, ...]
    of: str = ""

    def folder(self, work: Path) -> Path:
        return home(work) / "formats" / self.name

    def source(self, work: Path) -> Path:
        return FORMATS[self.of].folder(work) if self.of else source(work)

    def command(self, work: Path) -> list[str]:
        python = self.environment.python(work) if self.environment else Path(sys.executable)
        given = {"bin": python.parent, "source": self.source(work), "target": self.folder(work)}
        return [str(python), *(word.format(**given) for word in self.words)]


@dataclass(frozen=True)
class Peer:
    """A row. format: None reads the model as it is. draws: pictures, of which the last counts."""

    name: str
    tool: str
    variant: str
    environment: Environment | None
    format: Format | None
    draws: int = 2

    def model(self, work: Path) -> Path:
        return self.format.folder(work) if self.format else source(work)


def run_by(environment: Environment | None, work: Path) -> list[str]:
    """How `draw` is started: by its path in a tool's environment, as a module of vitrify in our own."""
    if environment is None:
        return [sys.executable, "-m", "vitrify.bench.peers.draw"]
    return [str(environment.python(work)), "-P", str(HERE / "draw.py")]


def variables(work: Path) -> dict[str, str]:
    """What a tool's process gets: no network; caches of its own."""
    return {
        **OFFLINE,
        "TORCHINDUCTOR_CACHE_DIR": str(inductor(work)),
        "VITRIFY_CACHE": str(cache(work)),
        "TOKENIZERS_PARALLELISM": "false",
        "OPENVINO_TELEMETRY": "0",
    }


def cache(work: Path) -> Path:
    """vitrify's cache, for its rows and exports alone."""
    return home(work) / "cache"


def inductor(work: Path) -> Path:
    """torch.compile's cache; emptied before each run, so that each compiles all."""
    return home(work) / "inductor"


DIFFUSERS = Environment("diffusers", ("torch", "diffusers", "transformers"))
OPTIMUM_ONNX = Environment("optimum-onnx", ("optimum.onnxruntime", "diffusers"))
# torchvision is wanted by optimum-intel and used by nothing here; its wheel does not import beside torch's for the CPU
OPENVINO = Environment("openvino", ("optimum.intel", "openvino_genai"), without=("torchvision",))
SDCPP = Environment(
    "stable-diffusion-cpp", ("stable_diffusion_cpp",), {"CMAKE_BUILD_PARALLEL_LEVEL": str(usable_cores())}
)
ENVIRONMENTS = {one.name: one for one in (DIFFUSERS, OPTIMUM_ONNX, OPENVINO, SDCPP)}

# as the documentation of each says; Optimum ONNX checks its graphs by default, Optimum Intel writes the tokenizer that
# OpenVINO GenAI wants
_OPTIMUM = ("{bin}/optimum-cli", "export")
_GIVEN = ("--model", "{source}", "--task", "text-to-image", "--library", "diffusers")
_GGUF = (
    "import pathlib, sys, stable_diffusion_cpp as s; source, target, kind = sys.argv[1:]; "
    "pathlib.Path(target).parent.mkdir(); "
    "sys.exit(not s.StableDiffusion().convert(source, output_path=target, output_type=kind))"
)
# graphs for steps that take kept features and keys: what the bench `less` draws with
_LESS = ("--step-cache", "1", "--prompt-once")
# random weights have no ranges that more samples would find, and each sample costs steps of the whole pipeline
_STATIC = ("--to", "onnx", "--quant", "int8-static", "--samples", "4", "--no-verify")
# in this order: int8-static starts from fp32
FORMATS = {
    one.name: one
    for one in (
        Format("optimum-onnx", OPTIMUM_ONNX, (*_OPTIMUM, "onnx", *_GIVEN, "{target}")),
        Format("openvino", OPENVINO, (*_OPTIMUM, "openvino", *_GIVEN, "--weight-format", "fp32", "{target}")),
        Format("gguf-f32", SDCPP, ("-c", _GGUF, "{source}", "{target}/model.gguf", "f32")),
        Format("gguf-q8_0", SDCPP, ("-c", _GGUF, "{source}", "{target}/model.gguf", "q8_0")),
        Format("vitrify-fp32", None, ("-m", "vitrify", "export", "{source}", "-o", "{target}", *_LESS)),
        Format(
            "vitrify-int8-static",
            None,
            ("-m", "vitrify", "compile", "{source}", "-o", "{target}", *_STATIC),
            of="vitrify-fp32",
        ),
    )
}

EAGER = Peer("diffusers, eager", "diffusers_eager", "", DIFFUSERS, None)
FLOAT32 = (
    EAGER,
    Peer("diffusers, torch.compile", "diffusers_compile", "", DIFFUSERS, None),
    Peer("Optimum ONNX", "optimum_onnx", "", OPTIMUM_ONNX, FORMATS["optimum-onnx"]),
    Peer("Optimum Intel", "optimum_intel", "f32", OPENVINO, FORMATS["openvino"]),
    Peer("OpenVINO GenAI", "genai", "f32", OPENVINO, FORMATS["openvino"]),
    Peer("stable-diffusion.cpp, f32", "sdcpp", "", SDCPP, FORMATS["gguf-f32"]),
    Peer("vitrify on ONNX Runtime", "ours", "onnx", None, FORMATS["vitrify-fp32"]),
    Peer("vitrify on OpenVINO", "ours", "openvino", None, FORMATS["vitrify-fp32"]),
)
QUANTIZED = (
    Peer("stable-diffusion.cpp, q8_0", "sdcpp", "", SDCPP, FORMATS["gguf-q8_0"]),
    Peer("vitrify, int8-static on ONNX Runtime", "ours", "onnx", None, FORMATS["vitrify-int8-static"]),
    Peer("vitrify, int8-static on OpenVINO", "ours", "openvino", None, FORMATS["vitrify-int8-static"]),
)
BFLOAT16 = (
    Peer("Optimum Intel, bfloat16", "optimum_intel", "bf16", OPENVINO, FORMATS["openvino"]),
    Peer("OpenVINO GenAI, bfloat16", "genai", "bf16", OPENVINO, FORMATS["openvino"]),
    Peer("vitrify on OpenVINO, bfloat16", "ours", "openvino precision=bfloat16", None, FORMATS["vitrify-fp32"]),
)


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, which OpenVINO then does unless it is told not to."""
    flags = {flag for key, value in cpu_info() if key == "flags" for flag in value.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def peers() -> tuple[Peer, ...]:
    """The rows of this machine."""
    return (*FLOAT32, *QUANTIZED, *(BFLOAT16 if has_bfloat16() else ()))
