"""What of a generation's work is left out, as a user or a preset asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.errors import UsageError
from .guiding import Guiding
from .presets import Preset, preset_named
from .step_cache import StepCache

DECODERS = ("vae", "preview")


@dataclass(frozen=True)
class Saving:
    """step_cache: None computes each step whole. decoder: "vae", or "preview" for the artifact's small one."""

    step_cache: StepCache | None = None
    guiding: Guiding = field(default_factory=Guiding)
    decoder: str = "vae"

    @classmethod
    def of(
        cls,
        preset: str | None = None,
        *,
        step_cache: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_every: int | None = None,
        decoder: str | None = None,
        shallow: bool = True,
    ) -> tuple[Saving, tuple[str, ...]]:
        """And a note for what the preset cannot do here.

        Args:
            shallow: whether the artifact has a graph that takes deep features.

        Raises:
            UsageError: one of them is out of range, or not known.
        """
        usual = preset_named(preset) if preset is not None else Preset("")
        notes: tuple[str, ...] = ()
        if step_cache is None and usual.step_cache is not None and not shallow:
            notes = (f"{preset} without step caching: export or compile the artifact again, with --step-cache.",)
        elif step_cache is None:
            step_cache = usual.step_cache
        decoder = DECODERS[0] if decoder is None else decoder
        if decoder not in DECODERS:
            raise UsageError(f"There is no decoder {decoder!r}.", f"Give {' or '.join(DECODERS)}.")
        guiding = Guiding.of(
            usual.guidance_interval if guidance_interval is None else guidance_interval,
            usual.guidance_every if guidance_every is None else guidance_every,
        )
        return cls(StepCache.parse(step_cache) if step_cache is not None else None, guiding, decoder), notes

    def to_json(self) -> dict[str, object]:
        """For a picture's parameters: what is not as usual."""
        said = self.guiding.to_json()
        if self.step_cache is not None:
            said["step_cache"] = str(self.step_cache)
        if self.decoder != DECODERS[0]:
            said["decoder"] = self.decoder
        return said
