"""What the pictures of a sweep are drawn with beside numbers and words: files, LoRAs, ControlNets and plugins.

A picture that was drawn earlier is known by what these files hold, not by where they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.artifact import Artifact, hash_file
from ...core.errors import BadInput, UsageError
from ...pipelines.adapters import parse_lora
from ...pipelines.hooks import hooks_of
from ...pipelines.images import open_image
from ...pipelines.lora import find_lora, split_loras
from .axes import NO_LORA, Axis
from .plan import Settings

Json = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """A ControlNet of every picture. net: its artifact. picture: ready to be followed. The rest as in `ControlUnit`."""

    net: Artifact
    picture: Image.Image
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass
class Given:
    """What all pictures of a sweep have in common beside their settings.

    lora_folder: where LoRAs that are named are looked for; None: they are named by their files. embeddings: files of
    textual inversions. hooks: as `hooks_of` takes them.
    """

    controls: Sequence[Control] = ()
    lora_folder: Path | None = None
    embeddings: Sequence[Path] = ()
    hooks: Sequence[str] = ()
    _images: dict[str, Image.Image] = field(default_factory=dict, init=False, repr=False)
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def check(self, axes: Sequence[Axis], base: Settings) -> None:
        """Refuse what would change nothing, and read every picture and plugin, before anything is drawn.

        Raises:
            UsageError: an axis or an option without what it is of.
            BadInput: a picture cannot be read.
        """
        self._images.clear()
        self._hashes.clear()
        swept = {axis.name: axis for axis in axes}
        paths = [*filter(None, (base.image, base.mask)), *(swept["image"].values if "image" in swept else ())]
        for name in ("strength", "mask"):
            if (name in swept or getattr(base, name) is not None) and base.image is None and "image" not in swept:
                what = _called(swept.get(name), name)
                raise UsageError(f"{what} is of a picture to start from, and there is none.", "Give --image.")
        if "control_strength" in swept and not self.controls:
            what = _called(swept["control_strength"], "control_strength")
            raise UsageError(f"{what} is of ControlNets, and there is none.", "Give --controlnet and --control.")
        if "lora_strength" in swept:
            _check_weighed(swept["lora_strength"], swept["lora"].values if "lora" in swept else base.lora, base)
        for text in base.lora:
            parse_lora(text)
        for path in paths:
            self.picture(path)
        hooks_of(self.hooks)

    def picture(self, path: str) -> Image.Image:
        """A picture's file, decoded once.

        Raises:
            BadInput: it cannot be read.
        """
        if path not in self._images:
            self._images[path] = open_image(path)
        return self._images[path]

    def asked(self, settings: Settings) -> Json:
        """What of this decides what is drawn; nothing for pictures that are drawn from words alone."""
        found: Json = {}
        for name in ("image", "mask"):
            path = getattr(settings, name)
            if path is not None:
                found[name] = digest(self.picture(path))
        found |= settings.saved
        if settings.strength is not None:
            found["strength"] = settings.strength
        if self.controls:
            found["control"] = [
                {"net": c.net.id, "picture": digest(c.picture), "strength": s, "start": c.start, "end": c.end}
                for c, s in zip(self.controls, self.control_strengths(settings), strict=True)
            ]
        loras = [[self._lora(name), *both] for name, both in _loras(settings)]
        found |= {"loras": loras} if loras else {}
        if self.embeddings:  # the file's name may be the word that it teaches
            found["embeddings"] = [[path.stem, self._hash(path)] for path in self.embeddings]
        return found | ({"hooks": list(self.hooks)} if self.hooks else {})

    def control_strengths(self, settings: Settings) -> list[float]:
        """One for each ControlNet."""
        own = settings.control_strength
        return [c.strength if own is None else own for c in self.controls]

    def request(self, settings: Settings) -> Json:
        """What `generate` takes of this and of the settings, but for the ControlNets.

        Raises:
            BadInput, UsageError: a hook that cannot be opened.
        """
        made: Json = {**settings.drawing, **settings.saving, "strength": settings.strength}
        for name in ("image", "mask"):
            path = getattr(settings, name)
            made |= {name: self.picture(path)} if path is not None else {}
        # a hook may remember what it did; a picture shall not depend on those that were drawn before it
        return {**made, "loras": dict(parse_lora(text) for text in settings.lora), "hooks": hooks_of(self.hooks)}

    def facts(self) -> Json:
        """For the document."""
        return {
            "controls": [
                {"net": c.net.name, "artifact": c.net.id, "strength": c.strength, "start": c.start, "end": c.end}
                for c in self.controls
            ],
            "lora_folder": None if self.lora_folder is None else str(self.lora_folder),
            "embeddings": [str(path) for path in self.embeddings],
            "hooks": list(self.hooks),
        }

    def _lora(self, name: str) -> str:
        """The digest of a LoRA's file; its name where there is no such file, which drawing tells."""
        if name not in self._hashes:
            path = Path(name)
            try:
                if path.suffix != ".safetensors" or not path.is_file():
                    path = find_lora(name, {} if self.lora_folder is None else self.lora_folder)
            except BadInput:
                return name
            self._hashes[name] = self._hash(path)
        return self._hashes[name]

    def _hash(self, path: Path) -> str:
        key = str(path)
        if key not in self._hashes:
            try:
                self._hashes[key] = hash_file(path)
            except OSError:  # told when it is opened
                return key
        return self._hashes[key]


def digest(picture: Image.Image) -> str:
    """sha256 of a picture's pixels, in hex: the same of one that was saved again without loss."""
    head = f"{picture.mode} {picture.width}x{picture.height} ".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def _loras(settings: Settings) -> list[tuple[str, tuple[float, float]]]:
    """(name, strengths) of those that are given, then of those that the prompt names."""
    found = []
    for name, strength in map(parse_lora, settings.lora):
        found.append((name, strength if isinstance(strength, tuple) else (strength, strength)))
    try:
        _, tags = split_loras(settings.prompt)
    except BadInput:  # told in the picture's cell
        tags = []
    return [*found, *((name, (strength, text)) for name, strength, text in tags)]


def _check_weighed(axis: Axis, loras: Sequence[str], base: Settings) -> None:
    """Hold an axis of a LoRA's strength to the LoRAs that there are: one at a time, without a strength of its own."""
    what, named = _called(axis, axis.name), [text for text in loras if text != NO_LORA]
    if not named:
        raise UsageError(f"{what} is of a LoRA, and there is none.", "Give --lora NAME, or an axis lora=NAME,NAME.")
    if named == list(base.lora) and len(named) > 1:
        raise UsageError(f"{what} is of one LoRA, and there are {len(named)}.", "Give one --lora.")
    for text in named:
        name, strength = parse_lora(text)
        if isinstance(strength, tuple):
            raise UsageError(f"{what} is swept, and {text} names a strength too.", f"Write {name} alone.")


def _called(axis: Axis | None, name: str) -> str:
    """What asked for it, as it was typed."""
    return f"--{name.replace('_', '-')}" if axis is None else f"--{axis.letter} {name}"
