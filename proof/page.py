"""The proofs of an artifact as one page that needs nothing else."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.publish import disk_errors
from .words import in_words

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem} h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums} .wide{overflow-x:auto}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)}
.ok{color:light-dark(#156b36,#6fdc98)} .no{opacity:.65} .failed{color:light-dark(#a11,#f88);font-weight:600}
code{font-size:.9em;overflow-wrap:anywhere}
"""


def write_page(artifact: Artifact, path: Path) -> None:
    """Write the page.

    Raises:
        DiskError: it cannot be written.
    """
    rows = []
    for name, component in artifact.components.items():
        proof = component.proof
        rows.append([name, *(_cell(proof.get(kind, "not run")) for kind in ("graph", "weights", "numeric"))])
    outputs = [
        [
            name,
            kind,
            html.escape(str(o.get("output"))),
            _sizes(o.get("sizes", {})),
            _number(o.get("max_abs"), ".2e"),
            _number(o.get("relative"), ".2e"),
            _number(o.get("cosine"), ".9f"),
        ]
        for name, component in artifact.components.items()
        for kind in ("graph", "numeric")
        if isinstance(component.proof.get(kind), dict)
        for o in component.proof[kind].get("outputs", [])
    ]
    files = [[w.path, f"{w.bytes:,}", f"<code>{w.sha256 or 'not hashed'}</code>"] for w in _weights(artifact)]
    whole = [[k, _cell(artifact.proof.get(k, "not run"))] for k in ("images", "labels")]
    versions = artifact.proof.get("versions", {})
    title = html.escape(artifact.name)
    model, source = (html.escape(str(artifact.model.get(k))) for k in ("architecture", "source"))
    failed = ""
    if artifact.proof.get("status") == "failed":
        failed = f'<p class="failed">FAILED its proof: {html.escape(str(artifact.proof.get("what", "")))}</p>\n'
    body = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}: proofs</title><style>{_STYLE}</style>
<h1>{title}</h1>
{failed}<p>{model} from <code>{source}</code>, artifact <code>{artifact.id[:16] or "without a manifest"}</code>.</p>
<h2>Components</h2>{_table(["component", "graph", "weights", "numeric"], rows)}
<h2>The whole pipeline</h2>{_table(["what", "proof"], whole)}
<h2>Every comparison</h2>
{_table(["component", "proof", "output", "sizes", "max error", "of the range", "cosine"], outputs)}
<h2>Files of weights</h2>{_table(["file", "bytes", "sha256"], files)}
<h2>Made with</h2><p><code>{html.escape(json.dumps(versions))}</code></p>
</html>
"""
    with disk_errors(path):
        path.write_text(body, encoding="utf-8")


def _weights(artifact: Artifact) -> list[Any]:
    return [w for component in artifact.components.values() for w in component.weights]


def _cell(proof: Any) -> str:
    kind = "no" if not isinstance(proof, dict) or proof.get("status") == "failed" else "ok"
    return f'<span class="{kind}">{html.escape(in_words(proof))}</span>'


def _number(value: Any, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else "-"


def _sizes(sizes: dict[str, int]) -> str:
    return html.escape(", ".join(f"{k} {v}" for k, v in sizes.items()))


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{h}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
