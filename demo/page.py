"""A demo's results as a page, a table and a few lines: every number on them is one of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

Results = Mapping[str, Any]

_TEMPLATE = Path(__file__).with_name("page.html")


def build_page(results: Results) -> str:
    """index.html: one file with its style in it; pictures are files beside it, named in `results`."""
    grid, swap, faces = results["grid"], results["swap"], results["faces"]
    shown = [*grid[0]["pictures"][:3], *(p["after"] for p in swap["pairs"][:2]), *(f["picture"] for f in faces[-3:])]
    order = [shown[i] for i in (0, 3, 5, 1, 6, 4, 2, 7) if i < len(shown)]
    sections = (_exports, _sizes, _swap, _faces, _race, _commands)
    drawn, settings = results["timing"]["draw"], results["settings"]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        icon=escape(faces[-1]["picture"]["file"]),
        headline="From two small models to proved artifacts, pictures and labels",
        lead=escape(
            f"This page was written on {results['date']} by one command, which took {_span(results['seconds'])} on "
            f"{_plural(settings['threads'], 'core')}. Every number and every picture below comes from that run."
        ),
        strip="".join(_picture(p) for p in order),
        figures="".join(
            f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>"
            for value, what in (
                (_span(results["seconds"]), "for everything: export, proofs, pictures, labels, timings"),
                (
                    _alike(drawn["min_psnr_db"]),
                    f"{_plural(drawn['rounds'], 'picture')} drawn by PyTorch and by the runtime, compared",
                ),
                (_seconds(swap["seconds"]), "to export another fine-tune, " + _without_torch(swap)),
                (f"{_right(faces)} of {len(faces)}", "faces that it drew were read as they were meant"),
            )
        ),
        sections="\n".join(section(results) for section in sections),
        machine=escape(_machine(results)),
        versions=escape(", ".join(f"{name} {version}" for name, version in results["versions"].items())),
    )


def build_table(results: Results) -> str:
    """results.md: the same figures as tables."""
    swap, timing = results["swap"], results["timing"]
    parts = [f"# vitrify demo\n\n{_machine(results)} {_span(results['seconds'])} in all."]
    rows = [[e["name"], *row] for e in (*results["exports"], swap) for row in _proof_rows(e)]
    parts.append("## Proofs\n\n" + _markdown(["model", "component", "graph", "weights", "numeric"], rows))
    rows = [[e["name"], _seconds(e["seconds"]), _whole(e["proof"])] for e in (*results["exports"], swap)]
    parts.append("## Exports\n\n" + _markdown(["model", "time", "whole pipeline against PyTorch"], rows))
    rows = [
        [f"{g['size']}x{g['size']}", str(g["batch"]), _seconds(g["seconds"]), _seconds(g["seconds"] / g["batch"])]
        for g in results["grid"]
    ]
    parts.append("## Sizes and batches from one graph\n\n" + _markdown(["size", "batch", "time", "a picture"], rows))
    rows = [
        [f["picture"]["prompt"], f["labels"][0]["label"], f"{f['labels'][0]['score']:.2f}", _verdict(f)]
        for f in results["faces"]
    ]
    parts.append("## Faces drawn and read\n\n" + _markdown(["caption", "label", "score", "verdict"], rows))
    rows = [
        [what, _range(row["torch"]), _range(row["runtime"]), _ratio(row), near]
        for what, row, near in (
            ("draw", timing["draw"], _near_pictures(timing["draw"])),
            ("read", timing["read"], f"scores within {timing['read']['max_score_difference']:.1e}"),
        )
    ]
    head = ["work", "PyTorch, a picture", "ONNX Runtime, a picture", "speed", "difference"]
    parts.append("## PyTorch and ONNX Runtime\n\n" + _markdown(head, rows) + f"\n\n{_how_timed(results)}")
    return "\n\n".join(parts) + "\n"


def summary_lines(results: Results) -> list[str]:
    """What the terminal shows."""
    swap, draw, read = results["swap"], results["timing"]["draw"], results["timing"]["read"]
    drawn = sum(len(g["pictures"]) for g in results["grid"]) + 2 * len(swap["pairs"]) + len(results["faces"])
    wrong = [f"{f['picture']['prompt']} as {f['labels'][0]['label']}" for f in results["faces"] if not f["right"]]
    return [
        *(
            f"{e['name']}: exported and proved in {_seconds(e['seconds'])}; {_whole(e['proof'])}"
            for e in results["exports"]
        ),
        f"{swap['name']}: {swap['changed']} of {swap['tensors']} UNet tensors changed, exported in "
        f"{_seconds(swap['seconds'])}, {_without_torch(swap)}; {_whole(swap['proof'])}",
        f"{drawn} pictures at {' and '.join(str(s) for s in _sizes_of(results))} pixels from one graph",
        f"faces: {_right(results['faces'])} of {len(results['faces'])} read right"
        + (f" (read wrong: {', '.join(wrong)})" if wrong else ""),
        *(
            f"{what} a picture: PyTorch {_seconds(row['torch']['median'])}, ONNX Runtime "
            f"{_seconds(row['runtime']['median'])} ({_ratio(row)}; {_plural(row['threads'], 'thread')})"
            for what, row in (("draw", draw), ("read", read))
        ),
        f"{_span(results['seconds'])} in all",
    ]


def _exports(results: Results) -> str:
    rows = "".join(
        f"<tr>{_cell(e['name'], len(_proof_rows(e))) if first else ''}"
        f"<th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
        for e in (*results["exports"], results["swap"])
        for first, (name, *cells) in zip([True] + [False] * 9, _proof_rows(e), strict=False)
    )
    times = ", ".join(f"{e['name']} {_seconds(e['seconds'])}" for e in results["exports"])
    wholes = "".join(
        f"<li>{escape(e['name'])}: {escape(_whole(e['proof']))}.</li>" for e in (*results["exports"], results["swap"])
    )
    notes = "".join(f"<li>{escape(e['name'])}: {escape(n)}</li>" for e in results["exports"] for n in e["notes"])
    return (
        "<section><h2>Exported and proved</h2>"
        "<p>Each component became an ONNX graph that points into the model's own weights file. "
        "<em>Graph</em>: with random weights, against PyTorch. <em>Weights</em>: every tensor traced "
        "to the source by name, shape, type and hash. <em>Numeric</em>: the real weights, largest error of an output "
        f"against PyTorch in float32. Export with all proofs: {escape(times)}.</p>"
        "<div class=scroll tabindex=0 role=region aria-label=Proofs><table><thead><tr>"
        f"{''.join(f'<th scope=col>{name}</th>' for name in ('model', 'component', 'graph', 'weights', 'numeric'))}"
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        f"<h3>The whole pipeline against PyTorch</h3><ul>{wholes}</ul>"
        f"<details><summary>Where each graph came from</summary><ul>{notes}</ul></details></section>"
    )


def _sizes(results: Results) -> str:
    blocks = []
    for size in _sizes_of(results):
        rows = [r for r in results["grid"] if r["size"] == size]
        times = "; ".join(
            f"batch {r['batch']} in {_seconds(r['seconds'])}"
            + (f", {_seconds(r['seconds'] / r['batch'])} a picture" if r["batch"] > 1 else "")
            for r in rows
        )
        pictures = "".join(
            _figure(p, ", alone" if r["batch"] == 1 and len(rows) > 1 else "") for r in rows for p in r["pictures"]
        )
        blocks.append(f'<h3>{size} × {size} pixels: {times}</h3><div class=grid style="--side:{size}">{pictures}</div>')
    alone = [r["differs_from_batch"] for r in results["grid"] if "differs_from_batch" in r]
    same = "is the same, bit for bit" if not any(alone) else f"differs by at most {max(alone)} of 255"
    return (
        "<section><h2>One graph, two sizes, two batches</h2>"
        f"<p>No size is compiled in. The first picture of each batch, drawn again alone, {same}. The model saw far "
        "fewer pictures of 96 pixels than of 64 when it was trained, and it shows in the finer parts.</p>"
        f"{''.join(blocks)}</section>"
    )


def _swap(results: Results) -> str:
    swap = results["swap"]
    pairs = "".join(
        f"<figure><div class=both>{_picture(p['before'], 'on white')}{_picture(p['after'], 'on midnight blue')}</div>"
        f"<figcaption>{escape(p['before']['prompt'])}, seed {p['before']['seed']}</figcaption></figure>"
        for p in swap["pairs"]
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in swap["notes"])
    return (
        "<section><h2>Other weights, the same graph</h2>"
        f"<p>A second fine-tune learned to draw on a midnight-blue ground by changing {swap['changed']} of the UNet's "
        f"{swap['tensors']} tensors ({swap['bytes'] / 1000:.0f} kB). A new process exported it in "
        f"<strong>{_seconds(swap['seconds'])}</strong>, its start included, {escape(_without_torch(swap))}. "
        f"The numeric proof was run afterwards and took {_seconds(swap['proof_seconds'])}. "
        "Same prompts, same seeds, before and after:</p>"
        f"<div class=pairs>{pairs}</div>"
        f"<details><summary>Where each graph came from</summary><ul>{notes}</ul></details></section>"
    )


def _faces(results: Results) -> str:
    items = []
    for face in results["faces"]:
        said = f"read as {face['labels'][0]['label']} ✓" if face["right"] else _verdict(face)
        verdict = f'<span class="verdict {"right" if face["right"] else "wrong"}">{escape(said)}</span>'
        scores = "".join(
            f'<span>{escape(s["label"])}</span><i style="--share:{s["score"]:.1%}"></i><span>{s["score"]:.2f}</span>'
            for s in face["labels"]
        )
        items.append(
            f"<li>{_picture(face['picture'])}<div><strong>{escape(face['picture']['prompt'])}</strong>{verdict}"
            f"<div class=scores>{scores}</div></div></li>"
        )
    numbers = [f["picture"]["seed"] for f in results["faces"]]
    seeds = f"{min(numbers)} to {max(numbers)}"
    return (
        "<section><h2>Drawn by one model, read by the other</h2>"
        f"<p>emoji-diffusion drew {_plural(len(results['faces']), 'face')}, seeds {seeds}; emoji-emotions read "
        f"{_right(results['faces'])} of {len(results['faces'])} as the caption meant them. Both learned from the same "
        "family of emoji, so this shows that the parts fit together, not how the classifier does on photographs.</p>"
        f"<ul class=faces>{''.join(items)}</ul></section>"
    )


def _race(results: Results) -> str:
    blocks = []
    for title, row, near in (
        ("Draw one picture", results["timing"]["draw"], _near_pictures(results["timing"]["draw"])),
        ("Read one picture", results["timing"]["read"], _near_labels(results["timing"]["read"])),
    ):
        slowest = max(row["torch"]["median"], row["runtime"]["median"])
        bars = "".join(
            f'<span>{name}</span><i class="{kind}" style="--share:{row[key]["median"] / slowest:.1%}"></i>'
            f"<span>{_range(row[key])}</span>"
            for name, key, kind in (("PyTorch", "torch", "theirs"), ("ONNX Runtime", "runtime", "ours"))
        )
        blocks.append(
            f"<h3>{title}: {_ratio(row)}</h3><div class=race>{bars}</div><p><small>{escape(near)}</small></p>"
        )
    return (
        "<section><h2>Beside PyTorch</h2>"
        "<p>The same pipeline code over PyTorch's modules and over the exported graphs, on the CPU, in float32.</p>"
        f"{''.join(blocks)}<p class=note>{escape(_how_timed(results))}</p></section>"
    )


def _commands(results: Results) -> str:
    items = "".join(
        f"<dt>{escape(c['what'])}</dt><dd><pre><code>{escape(c['command'])}</code></pre></dd>"
        for c in results["commands"]
    )
    where = "From the folder where the demo was started; after <code>make demo</code>, first"
    return f"<section><h2>Do it again</h2><p>{where} <code>. .venv/bin/activate</code>.</p><dl>{items}</dl></section>"


def _picture(row: Mapping[str, Any], how: str = "") -> str:
    alt = f"{row['prompt']} {how}".strip() + f", drawn with seed {row['seed']}"
    return f'<img src="{escape(row["file"])}" alt="{escape(alt)}" width="{row["width"]}" height="{row["height"]}">'


def _figure(row: Mapping[str, Any], how: str = "") -> str:
    return f"<figure>{_picture(row)}<figcaption>{escape(row['prompt'] + how)}</figcaption></figure>"


def _cell(text: str, rows: int) -> str:
    return f'<th scope=rowgroup rowspan="{rows}">{escape(text)}</th>'


def _proof_rows(export: Mapping[str, Any]) -> list[list[str]]:
    """component, graph, weights, numeric."""

    def figure(proof: Any) -> str:
        if not isinstance(proof, Mapping):
            return str(proof)
        if "tensors" in proof:
            return f"{proof['tensors']} tensors traced"
        return f"within {proof['max_abs']:.1e}"

    kinds = ("graph", "weights", "numeric")
    return [[n, *(figure(proof.get(k, "not run")) for k in kinds)] for n, proof in export["components"].items()]


def _whole(proof: Mapping[str, Any]) -> str:
    images, labels = proof.get("images"), proof.get("labels")
    if isinstance(images, Mapping):
        worst = images["min_psnr_db"]
        how = "identical" if worst is None else f"PSNR at least {worst:.1f} dB"
        return f"{_plural(images['pictures'], 'picture')} of {images['steps']} steps, {how}"
    if isinstance(labels, Mapping):
        return f"{_plural(labels['pictures'], 'picture')}, scores within {labels['max_score_difference']:.1e}"
    return "not run"


def _without_torch(swap: Mapping[str, Any]) -> str:
    return "with PyTorch loaded" if swap["torch_imported"] else "without loading PyTorch"


def _near_pictures(row: Mapping[str, Any]) -> str:
    worst = row["min_psnr_db"]
    return "The pictures of both are " + ("identical." if worst is None else f"alike: PSNR at least {worst:.1f} dB.")


def _near_labels(row: Mapping[str, Any]) -> str:
    return f"A run takes {row['batch']} pictures. The scores of both are within {row['max_score_difference']:.1e}."


def _how_timed(results: Results) -> str:
    draw, read, settings = results["timing"]["draw"], results["timing"]["read"], results["settings"]
    return (
        f"Seconds a picture: median (range) of {draw['rounds']} rounds for drawing and {read['rounds']} for reading, "
        f"in turns, warm, in one process, {_plural(draw['threads'], 'thread')} for each; a drawn picture takes "
        f"{settings['steps']} steps at 64x64 with guidance. PyTorch runs eagerly, without torch.compile. It is a "
        "demo's timing, with whatever else the machine was doing; a benchmark runs each case in a process of its own."
    )


def _machine(results: Results) -> str:
    machine = results["machine"]
    return (
        f"{machine['cpu']}, {_plural(machine['usable_cores'], 'core')} used, {machine['system']}, {machine['python']}; "
        f"{results['date']}."
    )


def _ratio(row: Mapping[str, Any]) -> str:
    """How the runtime's time stands to PyTorch's."""
    if row["busy"]:
        return f"no fair figure, other programs used {row['others']:.1f} cores"
    ratio = row["ratio"]
    if 0.97 < ratio < 1.03:
        return "no difference to speak of"
    return f"ONNX Runtime is {ratio:.2f}× as fast" if ratio > 1 else f"ONNX Runtime is slower, {ratio:.2f}× as fast"


def _sizes_of(results: Results) -> list[int]:
    return list(dict.fromkeys(g["size"] for g in results["grid"]))


def _right(faces: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(f["right"]) for f in faces)


def _verdict(face: Mapping[str, Any]) -> str:
    return f"read as {face['labels'][0]['label']}: " + (
        "right" if face["right"] else f"wrong, {face['expected']} was meant"
    )


def _range(row: Mapping[str, float]) -> str:
    return f"{_seconds(row['median'])} ({_seconds(row['min'])} to {_seconds(row['max'])})"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _alike(worst: float | None) -> str:
    """worst: PSNR in dB; None where pictures are equal."""
    return "identical" if worst is None else f"≥ {worst:.1f} dB"


def _seconds(value: float) -> str:
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in lines)
