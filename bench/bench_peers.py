"""peers: a whole picture by other tools and by vitrify, from the same model, noise and schedule, in one run.

It is not among those that `make bench` runs: it needs the environments that `make bench-peers` builds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from .measure import Case
from .models import SD15
from .peers import formats
from .peers.table import (
    EAGER,
    FORMATS,
    IDENTICAL_DB,
    Peer,
    home,
    inductor,
    peers,
    run_by,
    source,
    variables,
)
from .preparing import OFFLINE, disk, forget, is_made, keep, record, required, untimed
from .suite import Bench, Comparison
from .summary import Columns

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MODEL = SD15[0]
PROMPT, SEED = "a photograph of an astronaut riding a horse", 7
SIDE, GUIDANCE = 256, 7.5
LATENTS = (1, 4, SIDE // 8, SIDE // 8)


@dataclass(frozen=True)
class Picture:
    """What every row of a bench draws: a name for its files, and denoising steps."""

    name: str
    steps: int

    @property
    def title(self) -> str:
        return f"Stable Diffusion 1.5, {SIDE}x{SIDE}, {self.steps} steps with guidance"

    def reference(self, work: Path) -> Path:
        return home(work) / f"{self.name}.png"

    def drawn(self, peer: Peer, work: Path) -> Path:
        return home(work) / "pictures" / self.name / f"{slug(peer.name)}.png"

    def command(self, peer: Peer, model: Path, target: Path, work: Path, draws: int) -> list[str]:
        words = [*run_by(peer.environment, work), peer.tool, str(model), "--variant", peer.variant]
        words += ["--noise", str(_noise(work)), "--picture", str(target), "--draws", str(draws)]
        words += ["--prompt", PROMPT, "--seed", str(SEED), "--side", str(SIDE), "--steps", str(self.steps)]
        return [*words, "--guidance", str(GUIDANCE)]


def cases_of(rows: Sequence[Peer], picture: Picture, work: Path) -> list[Case]:
    """One case a row, each beside the reference."""
    return [_case(peer, picture, work) for peer in rows]


def _case(peer: Peer, picture: Picture, work: Path) -> Case:
    target = picture.drawn(peer, work)
    return Case(
        peer.name,
        picture.command(peer, peer.model(work), target, work, peer.draws),
        variables(work),
        group=picture.title,
        before=_before(peer, work, target),
        after=lambda _: {**_compared(target, picture.reference(work)), **_sizes(peer, work)},
    )


def _before(peer: Peer, work: Path, picture: Path) -> Callable[[], None]:
    def before() -> None:
        if peer.environment is not None:
            peer.environment.required(work)
        if peer.format is not None:
            required(peer.format.folder(work))
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.unlink(missing_ok=True)
        forget(inductor(work))

    return before


def _compared(picture: Path, reference: Path) -> Mapping[str, float]:
    """psnr_db: of the picture, to the one that diffusers drew in eager mode.

    Raises:
        BadInput: there is no picture, or one of another size.
    """
    from ..proof.quality import psnr

    ours, wanted = _pixels(picture), _pixels(reference)
    if ours.shape != wanted.shape:
        raise BadInput(f"{picture} is {ours.shape}, the reference {wanted.shape}.", f"Remove {reference}.")
    return {"psnr_db": min(psnr(wanted, ours), IDENTICAL_DB)}


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as exc:
        raise BadInput(f"{path} is no picture: {exc}.", "Run the case alone.") from exc


def _sizes(peer: Peer, work: Path) -> Mapping[str, float]:
    """disk_mb: the model in the tool's own format, each inode once; and what it took to make that."""
    made = formats.figures(peer.format, work) if peer.format is not None else {}
    return {**disk([peer.model(work)], set()), **made}


def prepare_for(picture: Picture, work: Path) -> None:
    """The model, its noise, the reference picture, and the formats; those that fail are told by their cases."""
    untimed("making the random sd15", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "sd15"])
    _lay_out(work)
    _make_noise(work)
    _draw_reference(picture, work)
    for one in FORMATS.values():
        try:
            formats.make(one, work)
        except BadInput as exc:
            print(exc.what, file=sys.stderr)


def _lay_out(work: Path) -> None:
    model, target = work / "models" / MODEL, source(work)
    command = [sys.executable, "-m", "vitrify.bench.peers.source", str(model), str(target)]
    _once("laying out the model", target, command, model)


def _make_noise(work: Path) -> None:
    import numpy as np

    from ..pipelines.random import TorchCpuGenerator

    np.save(_noise(work), TorchCpuGenerator(SEED).normal(LATENTS))


def _draw_reference(picture: Picture, work: Path) -> None:
    """With vitrify's own environment, which has diffusers: so there is one even where a tool's cannot be built."""
    target = picture.reference(work)
    command = picture.command(replace(EAGER, environment=None), source(work), target, work, draws=1)
    _once("drawing the reference", target, command, source(work))


def _once(what: str, target: Path, command: list[str], given: Path) -> None:
    """Run a command that makes `target`, unless it was made so. It does not depend on how artifacts are made."""
    wanted: dict[str, Any] = record(command, [given])
    del wanted["sources"]
    if not is_made(target, wanted):
        forget(target)
        untimed(what, command, OFFLINE)
        keep(target, wanted)


def _noise(work: Path) -> Path:
    return home(work) / "noise.npy"


def slug(name: str) -> str:
    """A row's name as a file name."""
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name.lower()).split())


SHORT = Picture("reference", 4)
COLUMNS = Columns(
    ("image_s", "first_image_s", "load_s", "compile_s", "step_ms", "peak_mb", "disk_mb", "psnr_db"),
    ("image_s", "peak_mb"),
)
PEERS = Bench(
    "peers",
    lambda work: cases_of(peers(), SHORT, work),
    lambda work: prepare_for(SHORT, work),
    (Comparison(SHORT.title, EAGER.name),),
    columns=COLUMNS,
)
