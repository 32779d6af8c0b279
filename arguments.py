"""Arguments and options that several commands share, as typer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .runtimes.base import Options

_RUNTIME = "Runtime"
_SOURCE = "Source"


class Hint(StrEnum):
    LATENCY = "latency"
    THROUGHPUT = "throughput"


class Offload(StrEnum):
    AUTO = "auto"
    NONE = "none"
    COMPONENTS = "components"
    WEIGHTS = "weights"


class Precision(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Model = Annotated[str, typer.Argument(help="An artifact's folder, a model's folder, or a hub id.")]

Verify = Annotated[
    bool | None, typer.Option("--verify/--no-verify", help="Numeric proof; default: where it needs under 1 GB.")
]
Force = Annotated[bool, typer.Option(help="Replace an artifact that lies there.")]

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=_SOURCE)]
Variant = Annotated[str | None, typer.Option(help="Variant of the weights, such as fp16.", rich_help_panel=_SOURCE)]
Token = Annotated[
    str | None,
    typer.Option(
        help="Hub token; default: the stored one.", envvar="HF_TOKEN", show_envvar=True, rich_help_panel=_SOURCE
    ),
]
ConfigFolder = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="For a single file: a diffusers folder or an artifact to take configs, tokenizers and scheduler from.",
        rich_help_panel=_SOURCE,
    ),
]
PredictionType = Annotated[
    str | None,
    typer.Option(
        help="For a single file: epsilon or v_prediction, where the model's kind does not tell.",
        rich_help_panel=_SOURCE,
    ),
]
Control = Annotated[
    bool, typer.Option("--control", help="Let the denoiser take ControlNets; without one it draws as before.")
]
Tome = Annotated[
    float | None,
    typer.Option(
        "--tome",
        help="Merge this share of the UNet's tokens, up to 0.75: large pictures faster, and not the same ones.",
        metavar="RATIO",
    ),
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", help="A VAE's folder or hub id, to take in place of the model's own.", metavar="FOLDER"),
]
PreviewVae = Annotated[
    str | None,
    typer.Option(
        "--preview-vae", help="A small VAE's folder or hub id, whose decoder draws previews.", metavar="FOLDER"
    ),
]
StepCacheGraph = Annotated[
    int | None,
    typer.Option(
        "--step-cache",
        help="Also a graph of so few of the denoiser's layers, 1 to 3, for steps that take features of earlier ones.",
        metavar="LAYERS",
    ),
]
PromptOnce = Annotated[
    bool,
    typer.Option(
        "--prompt-once",
        help="Also the denoiser in two graphs: what the prompt decides is computed once, and not in each step.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use only what the hub's cache holds.", rich_help_panel=_SOURCE)
]

DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, ...; without it the best that works.", rich_help_panel=_RUNTIME)
]
RuntimeOption = Annotated[
    str | None,
    typer.Option("--runtime", help="onnx, ...; without it the first that opens the format.", rich_help_panel=_RUNTIME),
]
Threads = Annotated[
    int, typer.Option(help="Threads; 0 leaves the choice to the runtime.", min=0, rich_help_panel=_RUNTIME)
]
Streams = Annotated[
    int, typer.Option(help="Calls at the same time; 0: as the hint says.", min=0, rich_help_panel=_RUNTIME)
]
HintOption = Annotated[
    Hint, typer.Option("--hint", help="One call soonest, or many at once.", rich_help_panel=_RUNTIME)
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="What floats are computed in; default: the artifact's.", rich_help_panel=_RUNTIME),
]
Prepack = Annotated[
    bool | None,
    typer.Option(
        "--prepack/--no-prepack",
        help="Copy the weights into the layout that runs fastest; without, it opens at once.",
        rich_help_panel=_RUNTIME,
    ),
]
Arena = Annotated[
    bool | None,
    typer.Option("--arena/--no-arena", help="Keep freed memory for the next run.", rich_help_panel=_RUNTIME),
]
Static = Annotated[
    bool,
    typer.Option("--static", help="Of OpenVINO: compile for each call's sizes.", rich_help_panel=_RUNTIME),
]
RuntimeCache = Annotated[
    bool,
    typer.Option(
        "--runtime-cache",
        help="Keep the runtime's optimized graph, with its weights, on disk.",
        rich_help_panel=_RUNTIME,
    ),
]

RuntimeOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime-option",
        "-O",
        help="An option of one runtime, as in provider=tensorrt, compile=regional, attention=flash.",
        metavar="NAME=VALUE",
        rich_help_panel=_RUNTIME,
    ),
]

Place = Annotated[
    str | None,
    typer.Option(
        "--place",
        help="Components on devices of their own, as in vae=cpu,unet=cuda:0.",
        metavar="NAME=DEVICE,...",
        rich_help_panel=_RUNTIME,
    ),
]
OffloadOption = Annotated[
    Offload,
    typer.Option(
        "--offload",
        help="auto: as a GPU's free memory wants it; none; components: one at a time; weights: streamed in.",
        rich_help_panel=_RUNTIME,
    ),
]


def runtime_options(
    threads: int,
    prepack: bool | None,
    arena: bool | None,
    runtime_cache: bool,
    hint: Hint,
    streams: int,
    precision: Precision | None,
    static: bool,
    more: Sequence[str] | None = None,
    unsaid: bool = True,
) -> Options:
    """What the options above say of a session. unsaid: what prepack and arena are where nobody said."""
    from .runtimes.base import Options
    from .runtimes.options import parse_options

    said = Options(
        threads=threads,
        prepack=unsaid if prepack is None else prepack,
        arena=unsaid if arena is None else arena,
        cache=runtime_cache,
        hint=hint,
        streams=streams,
        precision=precision,
        static=static,
    )
    return parse_options(more or (), said)
