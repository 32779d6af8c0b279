"""The README's table of families, tasks and runtimes, written from the results of the tests.

python tests/feature_table.py results.xml [README.md]

A test that compares a picture notes its cell (the fixture `cell` of tests/conftest.py). A cell stands in the table
where every test that noted it passed; one that was skipped, failed or was never noted is empty.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

START, END = "<!-- families: begin -->", "<!-- families: end -->"
FAMILIES = {"sd": "SD 1.x", "sdxl": "SDXL", "sd3": "SD 3, 3.5", "flux": "Flux", "sana": "Sana"}
TASKS = ("text2img", "img2img", "inpaint", "inpainting model", "ControlNet", "LoRA", "few steps", "tiny VAE")
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}


def cells(results: Path) -> dict[tuple[str, str], list[str]]:
    """(family, task) -> the runtimes on which every test of that cell passed, from a JUnit XML file."""
    passed: dict[tuple[str, str, str], bool] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        good = case.find("failure") is None and case.find("error") is None and case.find("skipped") is None
        for note in case.iter("property"):
            if note.get("name") == "cell":
                family, task, runtime = str(note.get("value")).split("/")
                key = family, task, runtime
                passed[key] = passed.get(key, True) and good
    found: dict[tuple[str, str], list[str]] = {}
    for (family, task, runtime), good in passed.items():
        for known, choices in ((family, FAMILIES), (task, TASKS), (runtime, RUNTIMES)):
            if known not in choices:
                raise SystemExit(f"A test notes {known!r}; the table knows {', '.join(choices)}.")
        if good:
            found.setdefault((family, task), []).append(runtime)
    return found


def table(found: Mapping[tuple[str, str], list[str]]) -> str:
    """Markdown: a row a family, a column a task, in each cell the runtimes."""
    lines = [f"| | {' | '.join(TASKS)} |", f"| --- {'| --- ' * len(TASKS)}|"]
    for family, name in FAMILIES.items():
        row = [", ".join(v for k, v in RUNTIMES.items() if k in found.get((family, task), [])) for task in TASKS]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def main(results: str, readme: str = "README.md") -> None:
    path = Path(readme)
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n{table(cells(Path(results)))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
