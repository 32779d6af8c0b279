"""The proofs of an artifact as one page that needs nothing else: pictures and all, no script."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import BadInput
from ..core.publish import disk_errors
from . import gallery
from .evidence import Pair, kept_pairs
from .words import in_words

_STYLE = """
:root{color-scheme:light dark;--line:light-dark(#d5d8dc,#3a3f45);--soft:light-dark(#5b6570,#a3adb8);
--accent:light-dark(#1d5fae,#7db4f5);--good:light-dark(#156b36,#6fdc98);--bad:light-dark(#a11,#f88)}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
background:light-dark(#fff,#15181b);color:light-dark(#1b1f23,#e6e9ec)}
h1{font-size:1.6rem;margin-bottom:0;overflow-wrap:anywhere} h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem} .wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;white-space:nowrap} td{min-width:3.6rem} .tight td{white-space:nowrap}
.ok{color:var(--good)} .no{color:var(--soft)} .failed{color:var(--bad);font-weight:600}
.verdict{border-left:.3rem solid var(--soft);padding:.5rem .8rem;margin:1rem 0}
.verdict.ok{border-color:var(--good)} .verdict.failed{border-color:var(--bad)}
p.no{font-size:.85rem;margin:.4rem 0} code{font-size:.9em;overflow-wrap:anywhere}
details{margin:1rem 0} summary{cursor:pointer;font-weight:600}
"""


def write_page(artifact: Artifact, path: Path, pairs: Sequence[Pair | None] | None = None) -> None:
    """Write the page.

    Args:
        pairs: the pictures, in the manifest's order; None for those that lie in the artifact's folder.

    Raises:
        BadInput: a picture in the artifact's folder cannot be read.
        DiskError: the page cannot be written.
    """
    shown = kept_pairs(artifact) if pairs is None else pairs
    title = html.escape(artifact.name)
    model, source = (html.escape(str(artifact.model.get(k))) for k in ("architecture", "source"))
    about = f"{model} from <code>{source}</code>, artifact <code>{_id(artifact)}</code>"
    parts = [
        f"<h1>{title}</h1>\n<p>{about}.<br>{_precision(artifact)}</p>",
        _verdict(artifact.proof),
        _pictures(artifact.proof.get("images"), shown),
        _labels(artifact.proof.get("labels")),
        f"<h2>Components</h2>{_components(artifact)}",
        f"<details><summary>Every comparison</summary>{_outputs(artifact)}</details>",
        f"<details><summary>Files of weights</summary>{_files(artifact)}</details>",
        _made_with(artifact.proof),
    ]
    content = "\n".join(part for part in parts if part)
    body = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}: proofs</title><style>{_STYLE}{gallery.STYLE}</style>
{content}
</html>
"""
    with disk_errors(path):
        path.write_text(body, encoding="utf-8")


def check_page_path(path: Path) -> None:
    """Refuse a path that no page can be written to, before minutes of work that it would show.

    Raises:
        BadInput: its folder is missing, or it is a folder itself.
    """
    if path.is_dir():
        raise BadInput(f"{path} is a folder.", "Name a file for the page, such as proof.html.")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path} cannot be written: there is no such folder.", "Make the folder, or name another.")


def _id(artifact: Artifact) -> str:
    return html.escape(artifact.id[:16]) or "without a manifest"


def _precision(artifact: Artifact) -> str:
    """How each kind of component is stored and computed; each kind once."""
    kinds: dict[str, list[str]] = {}
    for name, component in artifact.components.items():
        given = (str(component.precision.get(key)) for key in ("recipe", "weights", "activations"))
        recipe, weights, activations = given
        said = f"{component.format}, {recipe}: weights {weights}, computed in {activations}"
        kinds.setdefault(said, []).append(name)
    return "<br>".join(html.escape(f"{', '.join(names)}: {said}.") for said, names in kinds.items())


def _verdict(proof: dict[str, Any]) -> str:
    """What the pictures or labels were held to, and whether they kept it."""
    if proof.get("status") == "failed":
        return f'<p class="verdict failed">FAILED its proof: {html.escape(str(proof.get("what", "")))}</p>'
    images, labels = proof.get("images"), proof.get("labels")
    for one in (images, labels):
        if isinstance(one, dict) and one.get("status") == "failed":
            return f'<p class="verdict failed">{html.escape(in_words(one))}</p>'
    if isinstance(images, dict):
        return _passed(_images_verdict(images))
    if isinstance(labels, dict):
        return _passed(_labels_verdict(labels))
    return '<p class="verdict">The whole pipeline was not compared: pictures and labels are not run.</p>'


def _images_verdict(images: dict[str, Any]) -> str:
    asked = images.get("asked")
    if not isinstance(asked, dict):
        return in_words(images)
    which = str(asked.get("of"))
    value = images.get("min_psnr_db" if which == "worst" else "mean_psnr_db")
    least = _number(asked.get("psnr_db"), "g")
    if value is None:
        return f"all {images.get('pictures')} pictures are identical to the reference's; {least} dB were asked for"
    of = "of the worst picture" if which == "worst" else f"on average of {images.get('pictures')} pictures"
    ssim = f", and an SSIM of {_number(asked['ssim'], 'g')}" if "ssim" in asked else ""
    bar = f"; at least {least} dB were asked for" if asked.get("psnr_db") else ""
    return f"PSNR {_number(value, '.1f')} dB {of}{bar}{ssim}"


def _labels_verdict(labels: dict[str, Any]) -> str:
    asked = labels.get("asked")
    said = f"{_number(labels.get('agreement'), '.1%')} of {labels.get('pictures')} pictures have the reference's label"
    said += f", a score changes by at most {_number(labels.get('max_score_difference'), '.2g')}"
    if not isinstance(asked, dict):
        return said
    score = asked.get("score")
    limit = f", and at most {score:g}" if isinstance(score, int | float) and score < 1 else ""
    return f"{said}; at least {_number(asked.get('agreement'), '.0%')}{limit} were asked for"


def _passed(what: str) -> str:
    return f'<p class="verdict ok">Passed: {html.escape(what)}.</p>'


def _pictures(images: Any, pairs: Sequence[Pair | None]) -> str:
    if not isinstance(images, dict):
        return ""
    said = html.escape(f"{in_words(images)}; {images.get('steps', '-')} steps each.")
    shown = gallery.gallery(images, pairs)
    errors = gallery.numbers(images.get("latent_error"))
    if not shown and errors:  # manifests of earlier versions have the mean alone
        shown = f"<p>Error of the latents per step, on average:</p>{gallery.plot(errors, max(errors))}"
    by = images.get("measured_by")
    notes = ""
    if isinstance(by, dict):
        for name, files in by.items():
            listed = (
                ", ".join(f"{f} (sha256 {str(h)[:16]})" for f, h in files.items()) if isinstance(files, dict) else ""
            )
            notes += f'<p class="no">{html.escape(f"{name} was measured with {listed}.")}</p>'
    return f"<h2>Pictures</h2><p>{said}</p>{shown}{notes}"


def _labels(labels: Any) -> str:
    if not isinstance(labels, dict):
        return ""
    rows = [
        ["pictures", _number(labels.get("pictures"), "d")],
        ["same best label", _number(labels.get("agreement"), ".1%")],
        ["largest change of a score", _number(labels.get("max_score_difference"), ".3g")],
    ]
    shown = f"<h2>Labels</h2>{_table(['what', 'figure'], rows)}"
    changed = labels.get("most_changed")
    if not isinstance(changed, list) or not changed:
        return shown
    rows = []
    for row in (r for r in changed if isinstance(r, dict)):
        said = [
            f"{html.escape(str(row.get(side)))} {_number(row.get(f'{side}_score'), '.4f')}"
            for side in ("reference", "artifact")
        ]
        if row.get("reference") != row.get("artifact"):
            said[1] = f'<span class="failed">{said[1]}</span>'
        rows.append([html.escape(str(row.get("picture"))), *said, _number(row.get("max_score_difference"), ".2e")])
    head = ["picture", "reference", "artifact", "change"]
    return f"{shown}<h3>Pictures that changed most</h3>{_table(head, rows)}"


def _components(artifact: Artifact) -> str:
    rows = []
    for name, component in artifact.components.items():
        proofs = (component.proof.get(kind, "not run") for kind in ("graph", "weights", "numeric"))
        rows.append([html.escape(name), *map(_cell, proofs)])
    numeric = [component.proof.get("numeric") for component in artifact.components.values()]
    by = sorted({str(n["reference"]) for n in numeric if isinstance(n, dict) and n.get("reference")})
    note = f'<p class="no">Numbers were compared with {html.escape(" and ".join(by))}.</p>' if by else ""
    return _table(["component", "graph", "weights", "numeric"], rows) + note


def _outputs(artifact: Artifact) -> str:
    rows = [
        [
            html.escape(name),
            kind,
            html.escape(str(o.get("output"))),
            _sizes(o.get("sizes", {})),
            _number(o.get("max_abs"), ".2e"),
            _number(o.get("relative"), ".2e"),
            _number(o.get("cosine"), ".9f"),
            _number(o.get("snr_db"), ".1f"),
        ]
        for name, component in artifact.components.items()
        for kind in ("graph", "numeric")
        if isinstance(component.proof.get(kind), dict)
        for o in component.proof[kind].get("outputs", [])
    ]
    head = ["component", "proof", "output", "sizes", "max error", "of the range", "cosine", "SNR, dB"]
    return _table(head, rows, "tight")


def _files(artifact: Artifact) -> str:
    files = [w for component in artifact.components.values() for w in component.weights]
    rows = [
        [html.escape(w.path), f"{w.bytes:,}", f"<code>{html.escape(w.sha256 or 'not hashed')}</code>"] for w in files
    ]
    return _table(["file", "bytes", "sha256"], rows)


def _made_with(proof: dict[str, Any]) -> str:
    """Machine and libraries of the proof."""
    said = []
    for what in ("machine", "versions"):
        held = proof.get(what)
        if isinstance(held, dict) and held:
            listed = ", ".join(f"{k} {v}" if what == "versions" or k == "python" else str(v) for k, v in held.items())
            said.append(f"<p>{html.escape(listed)}</p>")
        elif held:
            said.append(f"<p><code>{html.escape(json.dumps(held))}</code></p>")
    return f"<h2>Proved on</h2>{''.join(said)}" if said else ""


def _cell(proof: Any) -> str:
    failed = isinstance(proof, dict) and proof.get("status") == "failed"
    kind = "failed" if failed else "ok" if isinstance(proof, dict) else "no"
    return f'<span class="{kind}">{html.escape(in_words(proof))}</span>'


def _number(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else "-"


def _sizes(sizes: dict[str, int]) -> str:
    return html.escape(", ".join(f"{k} {v}" for k, v in sizes.items()))


def _table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    top = "".join(f"<th>{h}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    table = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide" tabindex="0">{table}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
