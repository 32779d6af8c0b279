"""The pictures of a proof side by side, as a part of its page: reference, artifact, difference; figures; latents."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from .evidence import Pair, data_uri, difference

STYLE = """
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1rem;align-items:start}
.card{border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:0}
.card h3{margin:0;font-size:1rem} .card .how{margin:0 0 .7rem}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:.5rem}
figure{margin:0} figcaption{font-size:.8rem;color:var(--soft);line-height:1.3;margin-top:.25rem}
.three img{width:100%;height:auto;display:block;border-radius:.3rem;border:1px solid var(--line);box-sizing:border-box}
.small{image-rendering:pixelated}
dl{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:.8rem 0}
dl div{display:flex;flex-direction:column} dt{font-size:.8rem;color:var(--soft)} dd{margin:0}
.plot{display:grid;grid-template-columns:auto 1fr;gap:0 .5rem;font-size:.75rem;color:var(--soft);line-height:1}
.plot svg{grid-row:1/3;grid-column:2;width:100%;height:3.5rem;display:block;color:var(--accent)}
.plot .top{grid-column:1;text-align:right} .plot .zero{grid-column:1;align-self:end;text-align:right}
.plot .steps{grid-column:2;display:flex;justify-content:space-between;margin-top:.3rem}
"""
_SMALL = 256  # pixels a side, below which a picture is shown larger than it is, and its pixels shall stay pixels
# key -> (what it is called, format, unit)
_FIGURES = {
    "psnr_db": ("PSNR", ".1f", " dB"),
    "ssim": ("SSIM", ".4f", ""),
    "lpips": ("LPIPS", ".4f", ""),
    "clip_score": ("CLIP score", ".2f", ""),
    "clip_similarity": ("CLIP likeness", ".4f", ""),
}


def gallery(images: dict[str, Any], pairs: Sequence[Pair | None]) -> str:
    """A card for each picture that the manifest's `images` names; manifests of other versions name none.

    pairs: in the manifest's order; None where the picture is not there.
    """
    drawn = images.get("drawn")
    entries = [entry if isinstance(entry, dict) else {} for entry in drawn] if isinstance(drawn, list) else []
    errors = [numbers(entry.get("latent_error")) for entry in entries]
    top = max((value for values in errors for value in values), default=0.0)
    cards = []
    for number, (entry, values) in enumerate(zip(entries, errors, strict=True)):
        pair = pairs[number] if number < len(pairs) else None
        cards.append(_card(entry, pair, _figures(images, number), plot(values, top)))
    if not cards:
        return ""
    note = (
        "Latents: root mean square difference after each step, as a share of the reference's; one scale for all. "
        "Difference: of each channel, times a factor that clips at most one value in 100."
    )
    return f'<div class="cards">{"".join(cards)}</div><p class="no">{note}</p>'


def _card(entry: dict[str, Any], pair: Pair | None, figures: str, latents: str) -> str:
    prompt = html.escape(str(entry.get("prompt", "")))
    seed, width, height = (html.escape(str(entry.get(key, "-"))) for key in ("seed", "width", "height"))
    shown = '<p class="no">The pictures were not kept.</p>'
    if pair is not None:
        apart, factor = difference(pair)
        said = f"difference ×\u00a0{factor}" if factor else "difference: none"
        sides = ((pair.reference, "reference"), (pair.artifact, "artifact"), (apart, said))
        shown = f'<div class="three">{"".join(_figure(picture, what, prompt) for picture, what in sides)}</div>'
    how = f"seed {seed}, {width}×{height} pixels"
    return (
        f'<section class="card"><h3>{prompt}</h3><p class="how no">{how}</p>{shown}{figures}'
        f"{'<p class=no>latents, error per step</p>' if latents else ''}{latents}</section>\n"
    )


def _figure(picture: Image.Image, what: str, prompt: str) -> str:
    kind = ' class="small"' if max(picture.size) < _SMALL else ""
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<figure><img{kind} src="{data_uri(picture)}" {size} alt="{prompt}: {html.escape(what)}">'
        f"<figcaption>{html.escape(what)}</figcaption></figure>"
    )


def _figures(images: dict[str, Any], number: int) -> str:
    """What the manifest has of this picture; nothing of what was not asked for."""
    cells = []
    for key, (name, form, unit) in _FIGURES.items():
        values = images.get(key)
        if not isinstance(values, list) or number >= len(values):
            continue
        value = values[number]
        # JSON has no infinity: no PSNR means no difference
        other = "identical" if value is None and key == "psnr_db" else "-"
        said = f"{value:{form}}{unit}" if isinstance(value, int | float) else other
        beside = numbers(images.get(f"{key}_reference"))[number : number + 1]
        said += "".join(f", reference {other:{form}}" for other in beside)
        cells.append(f"<div><dt>{name}</dt><dd>{said}</dd></div>")
    return f"<dl>{''.join(cells)}</dl>" if cells else ""


def plot(values: Sequence[float], top: float) -> str:
    """A line through `values`, from 0 at the bottom to `top`; empty where there are none."""
    if not values:
        return ""
    spread = max(len(values) - 1, 1)
    points = [(200 * i / spread, 58 - 56 * v / top if top else 58) for i, v in enumerate(values)]
    if len(points) == 1:
        points.append((200.0, points[0][1]))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    said = f"error of the latents after each of {len(values)} steps: {', '.join(f'{v:.2g}' for v in values)}"
    return (
        f'<div class="plot"><span class="top">{top:.2g}</span><span class="zero">0</span>'
        f'<svg viewBox="0 0 200 60" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'<polygon points="0,58 {line} 200,58" fill="currentColor" opacity=".15"/>'
        '<path d="M0 58H200M0 2H200" stroke="currentColor" opacity=".3" vector-effect="non-scaling-stroke"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2" '
        'vector-effect="non-scaling-stroke"/></svg>'
        f'<span class="steps"><span>step 1</span><span>last {values[-1]:.2g}</span><span>step {len(values)}</span>'
        "</span></div>"
    )


def numbers(values: Any) -> list[float]:
    """The values, where they are a list of finite numbers; else none."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return []
    return [float(v) for v in values]
