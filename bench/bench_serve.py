"""serve: what the server adds to a call, what it leaves of the best throughput, how it answers while it draws."""

from __future__ import annotations

import sys
from pathlib import Path

from .compiled import artifact, environment, export
from .measure import Case
from .models import NULL, SD15, VIT_B, make_picture
from .preparing import untimed
from .suite import Bench, Comparison
from .summary import Columns

MODELS = (("null", NULL), ("vit-b", VIT_B), ("sd15", SD15[0]))


def cases(work: Path) -> list[Case]:
    return [
        _case(work, "a model that does next to nothing", "overhead", NULL),
        _case(work, "ViT-B/16, 16 clients", "throughput", VIT_B),
        _case(work, "Stable Diffusion 1.5 draws", "health", SD15[0]),
    ]


def _case(work: Path, name: str, how: str, model: str) -> Case:
    command = [
        sys.executable,
        "-m",
        "vitrify.bench.serving",
        how,
        str(artifact(work, model)),
        str(work / "picture.png"),
    ]
    return Case(name, command, environment(work), group=how)


def prepare(work: Path) -> None:
    make_picture(work / "picture.png")
    for kind, model in MODELS:
        untimed(f"making the random {kind}", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), kind])
        export(work, model)


_FIGURES = (
    "overhead_p50_ms", "overhead_p99_ms", "direct_p50_ms", "direct_p99_ms", "bare_per_s", "served_per_s", "share",
    "healthz_p50_ms", "healthz_p99_ms",
)  # fmt: skip
SERVE = Bench(
    "serve",
    cases,
    prepare,
    tuple(Comparison(one.name, None, (one.name,)) for one in cases(Path())),
    columns=Columns(_FIGURES, ()),
)
