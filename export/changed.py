"""What an export changes of its source: tokens that are merged, another VAE, a decoder for previews.

A source that was changed says so in its `settings`, by option. So the manifest's `model` does, an artifact is exported
again with the same command line, and `verify` compares it with the source changed in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import BadInput, UsageError
from ..core.progress import Report, silent
from ..pipelines.settings import DENOISERS, vae_factors, vae_scale
from .families.merging import check_merges, check_ratio, with_merging
from .families.pipelines import CHECKS
from .families.vae import PREVIEW_DECODER
from .source import Source, SourceComponent
from .spec import Config
from .step_cache import DEPTHS
from .vae_source import VaeSource, vae_source

VAE = "vae"  # its folder in a diffusers model


@dataclass(frozen=True)
class Changes:
    """Options of `vitrify export` and `vitrify compile`; None: not given.

    tome: the share of tokens that the UNet merges. vae: a folder or hub id, of the VAE to take in place of the own one.
    preview_vae: likewise, of a VAE whose decoder draws previews. step_cache: layers of the graph for steps that take
    kept features; see step_cache.py. prompt_once: what the prompt decides is computed once; see prompt_part.py.
    """

    tome: float | None = None
    vae: str | None = None
    preview_vae: str | None = None
    step_cache: int | None = None
    prompt_once: bool = False

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Changes:
        """Those that a manifest's `model` names."""
        ratio = model.get("tome")
        paths = (model.get(name) for name in ("vae", "preview_vae"))
        vae, preview = (str(path) if path else None for path in paths)
        depth = model.get("step_cache")
        return cls(
            float(ratio) if isinstance(ratio, int | float) else None, vae, preview,
            depth if isinstance(depth, int) else None, bool(model.get("prompt_once")),
        )  # fmt: skip

    def given(self) -> list[str]:
        """The options that were given."""
        values: dict[str, object] = {"--tome": self.tome, "--vae": self.vae, "--preview-vae": self.preview_vae}
        values |= {"--step-cache": self.step_cache, "--prompt-once": self.prompt_once or None}
        return [option for option, value in values.items() if value is not None]

    def check(self) -> None:
        """Refuse numbers that no source could take, before one is looked for.

        Raises:
            UsageError: says which there are.
        """
        if self.tome is not None:
            check_ratio(self.tome)
        if self.step_cache is not None and self.step_cache not in DEPTHS:
            raise UsageError(
                f"--step-cache {self.step_cache} is not {' or '.join(map(str, DEPTHS))}.",
                "Give 1, the fewest layers, which is the fastest.",
            )

    def apply(
        self, source: Source, *, token: str | None = None, offline: bool | None = None, report: Report = silent
    ) -> Source:
        """The source, changed.

        Args:
            token, offline: of the hub, where a VAE is a hub id; see `fetch`.

        Raises:
            UsageError: a number that makes no sense, or a source that has no such part.
            BadInput: the source or the VAE is of a kind that does not fit, or the VAE cannot be had.
        """
        if self.vae is not None:
            source = with_vae(source, vae_source(self.vae, token=token, offline=offline, report=report))
        if self.preview_vae is not None:
            found = vae_source(self.preview_vae, option="--preview-vae", token=token, offline=offline, report=report)
            source = with_preview(source, found)
        if self.step_cache is not None:
            source = with_kept_features(source, self.step_cache)
        if self.prompt_once:
            source = with_prompt_once(source)
        return source if self.tome is None else merging(source, self.tome)


NO_CHANGES = Changes()


def merging(source: Source, ratio: float) -> Source:
    """The source, its UNet merging `ratio` of its tokens before self-attention at the highest resolution.

    Raises:
        UsageError: the ratio is not within 0 to 0.75, or the source has no UNet.
        BadInput: its UNet attends nowhere that tokens could be merged.
    """
    check_ratio(ratio)
    part = next((part for part in source.components if part.spec.name == "unet"), None)
    if part is None:
        raise UsageError(
            f"{source.given} has no UNet: tokens are merged in Stable Diffusion 1, 2 and XL alone.", "Leave --tome out."
        )
    check_merges(source.given, part.config)
    made = with_merging(part.spec, ratio)
    if made is part.spec:
        return source
    parts = tuple(replace(p, spec=made) if p is part else p for p in source.components)
    return replace(source, components=parts, settings={**source.settings, "tome": round(ratio, 3)})


def with_kept_features(source: Source, depth: int) -> Source:
    """The source, which shall get a shallow graph of so many layers beside its denoiser's.

    Raises:
        UsageError: it has no denoiser.
    """
    if all(part.spec.name not in DENOISERS for part in source.components):
        raise UsageError(f"{source.given} has no denoiser, whose features could be kept.", "Leave --step-cache out.")
    return replace(source, settings={**source.settings, "step_cache": depth})


def with_prompt_once(source: Source) -> Source:
    """The source, whose denoiser shall also be cut into what the prompt decides and the rest.

    Raises:
        UsageError: it has no denoiser.
    """
    if all(part.spec.name not in DENOISERS for part in source.components):
        raise UsageError(f"{source.given} has no denoiser that takes a prompt.", "Leave --prompt-once out.")
    return replace(source, settings={**source.settings, "prompt_once": True})


def with_vae(source: Source, vae: VaeSource) -> Source:
    """The source with another VAE in place of its own.

    Raises:
        UsageError: the source has none.
        BadInput: the VAE's latents are others than those of the source's denoiser.
    """
    own = _own(source, "--vae")
    _check_latents(source, own, vae)
    parts = tuple(vae.component(p.spec) if p.spec.folder == VAE else p for p in source.components)
    configs = {part.spec.name: part.config for part in parts}
    if source.family in CHECKS:
        CHECKS[source.family](f"{source.given} with {vae.given}", configs)
    index = source.index | {VAE: ["diffusers", vae.kind]}
    return replace(source, components=parts, index=index, settings={**source.settings, "vae": vae.named})


def with_preview(source: Source, vae: VaeSource) -> Source:
    """The source with the decoder of a VAE, mostly an AutoencoderTiny, as the component `preview_decoder`.

    Raises:
        UsageError: the source draws nothing.
        BadInput: the VAE's latents are others than those of the source's denoiser.
    """
    _check_latents(source, _own(source, "--preview-vae"), vae)
    parts = (*source.components, vae.component(PREVIEW_DECODER))
    return replace(source, components=parts, settings={**source.settings, "preview_vae": vae.named})


def _own(source: Source, option: str) -> SourceComponent:
    part = next((part for part in source.components if part.spec.folder == VAE), None)
    if part is None:
        raise UsageError(f"{source.given} has no VAE, so it draws nothing.", f"Leave {option} out.")
    return part


def _check_latents(source: Source, own: SourceComponent, vae: VaeSource) -> None:
    """Hold another VAE's latents against the source's own, as far as configs tell.

    That of an AutoencoderTiny gives them as the denoiser takes them, so its factors are others.
    """
    has, wants = _latents(own.config), _latents(vae.config)
    kinds = {str(own.config.get("_class_name", "AutoencoderKL")), vae.kind}
    compared = [name for name in wants if len(kinds) == 1 or name not in ("scaling_factor", "shift_factor")]
    differing = [name for name in compared if has[name] != wants[name]]
    if differing:
        name = differing[0]
        raise BadInput(
            f"{vae.given} is a VAE of other latents than those of {source.given}: {name} is {wants[name]:g}, not "
            f"{has[name]:g}.",
            "Use a VAE that was made for this family of models.",
        )


def _latents(config: Config) -> dict[str, float]:
    told: dict[str, float] = {"latent_channels": int(config["latent_channels"]), "pixels a latent": vae_scale(config)}
    return told | vae_factors(config)
