"""LoadGen's query sample library: which samples there are, and which of them are in memory."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from .plan import FILES, setting

if TYPE_CHECKING:
    import numpy.typing as npt

    from ...core.artifact import Artifact

DRAWN = 64  # pictures where no folder is named
_MEMORY = 1 << 30  # bytes of samples that may be in memory at once
_PROMPTS = (
    "a red apple", "a smiling face", "a black cat", "a slice of pizza", "a snowman", "a blue car", "a green tree",
    "a yellow star", "a rocket in the sky", "a cup of coffee", "a white horse", "a red rose", "a wooden house",
    "a full moon", "a pair of glasses", "a birthday cake",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """truth: number of the label that its folder bears; None where folders say nothing."""

    path: Path
    truth: int | None = None


class QuerySampleLibrary:
    """Samples by number.

    Args:
        names: one a sample, as a reader knows it.
        read: makes one ready for a query: prepared pixels, the bytes of a file, a prompt. Called when LoadGen loads
            the sample, which is not timed.
        most: the most that LoadGen may want in memory at once, by MLPerf's rules.

    Attributes:
        truths: the right label of each; None where it is not known.
        at_once: how many are in memory together: what `most` and 1 GiB allow.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[int], Any], most: int, truths: Sequence[int | None] = ()
    ) -> None:
        self.names = list(names)
        self.truths = list(truths) or [None] * len(self.names)
        self._read = read
        self._loaded: dict[int, Any] = {}
        size = getattr(read(0), "nbytes", 0)
        self.at_once = max(1, min(len(self.names), most or len(self.names), _MEMORY // max(size, 1)))

    def load(self, numbers: Sequence[int]) -> None:
        """LoadSamplesToRam. Raises BadInput: one cannot be read."""
        for number in numbers:
            self._loaded[number] = self._read(number)

    def unload(self, numbers: Sequence[int]) -> None:
        """UnloadSamplesFromRam."""
        for number in numbers:
            self._loaded.pop(number, None)

    def sample(self, number: int) -> Any:
        return self._loaded[number]


def picture_library(
    pictures: Sequence[Picture], artifact: Artifact, carries: str, most: int, root: Path | None
) -> QuerySampleLibrary:
    """Pictures, prepared as the model takes them or, where requests carry files, as their own bytes.

    Args:
        root: the folder that names are shown relative to.

    Raises:
        BadInput: the first cannot be read or prepared.
    """
    from ...pipelines.images import open_image
    from ...pipelines.preprocess import ImagePreprocessor

    prepare = ImagePreprocessor.from_config(setting(artifact, "preprocess"))
    dtype = artifact.components["model"].inputs["pixel_values"].dtype.value

    def tensor(number: int) -> npt.NDArray[Any]:
        """float [3, height, width]."""
        prepared: npt.NDArray[Any] = prepare([open_image(pictures[number].path)])[0]
        return prepared.astype(dtype, copy=False)

    def file(number: int) -> bytes:
        path = pictures[number].path
        open_image(path)  # what cannot be read is told before it is sent
        return path.read_bytes()

    names = [str(p.path.relative_to(root) if root else p.path.name) for p in pictures]
    truths = [p.truth for p in pictures]
    return QuerySampleLibrary(names, file if carries == FILES else tensor, most, truths)


def prompt_library(file: Path | None, most: int) -> QuerySampleLibrary:
    """Prompts, one a line of a file.

    Raises:
        BadInput: it cannot be read, or has none.
    """
    if file is None:
        prompts: Sequence[str] = _PROMPTS
    else:
        try:
            prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as exc:
            said = getattr(exc, "strerror", None) or "it is not UTF-8"
            raise BadInput(f"{file} cannot be read: {said}.", "Name a text file with one prompt a line.") from exc
        if not prompts:
            raise BadInput(f"{file} has no prompts.", "Write one a line.")
    return QuerySampleLibrary(prompts, lambda number: (prompts[number], number), most)


def pictures_in(folder: Path, labels: Sequence[str]) -> list[Picture]:
    """The pictures right in a folder; where it has none, those of its subfolders, each named after a label.

    Raises:
        BadInput: there are none, or a subfolder bears the name of no label.
    """
    from ...pipelines.images import expand

    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder.", "Name a folder of pictures.")
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not inside or any(one.is_file() and not one.name.startswith(".") for one in folder.iterdir()):
        return [Picture(path) for path in expand([folder])]
    numbers = {label.casefold(): number for number, label in enumerate(labels)}
    found = []
    for one in inside:
        if one.name.casefold() not in numbers:
            near = difflib.get_close_matches(one.name.casefold(), numbers, 1) or list(numbers)[:5]
            raise BadInput(
                f"{one} bears the name of no label of the model.",
                f"Name each subfolder after a label ({', '.join(near)}), or put all pictures into one folder.",
            )
        found += [Picture(path, numbers[one.name.casefold()]) for path in expand([one])]
    return found


def drawn_pictures(folder: Path) -> list[Picture]:
    """Pictures of our own, no two alike: what a picture shows changes nothing of the time that a network takes."""
    from PIL import Image, ImageDraw

    for number in range(DRAWN):
        image = Image.linear_gradient("L").resize((300, 200)).convert("RGB").rotate(360 * number / DRAWN)
        ImageDraw.Draw(image).ellipse((90, 40, 210, 160), fill=(200, 4 * number, 40))
        out = io.BytesIO()
        image.save(out, "PNG")
        (folder / f"drawn-{number:02}.png").write_bytes(out.getvalue())
    return [Picture(path) for path in sorted(folder.glob("drawn-*.png"))]
