"""Run in a tool's environment: open a model in the tool's own format and draw, twice, with a clock.

    ENVIRONMENT/bin/python -P draw.py TOOL MODEL --noise FILE --picture FILE --prompt TEXT ...

TOOL is a file beside this one. `-P` keeps this folder off the module path, where its files would hide libraries.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drawing import Drawn, Job

HERE = Path(__file__).resolve().parent
ALONE = "vitrify_peers"  # this folder's name as a package, where vitrify is not installed
DRAWS = 2


def tool(name: str) -> Any:
    """The module of a tool; it and `drawing` are found whether or not this package is installed."""
    package = __package__ or ALONE
    if package == ALONE and ALONE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            ALONE, HERE / "__init__.py", submodule_search_locations=[str(HERE)]
        )
        assert spec is not None
        sys.modules[ALONE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")


def figures(name: str, job: Job, target: Path, draws: int) -> dict[str, float]:
    """Draw, keep the last picture, and give the clock's figures.

    Returns:
        import_s: the libraries; load_s: opening the model, whatever it compiles ahead included; first_image_s: the
        first whole picture, prompt to pixels; image_s: the last one; step_ms: the median of its steps after the first;
        and what the tool tells of itself.

    Raises:
        NoPicture: one of the pictures is none.
    """
    drawing = tool("drawing")
    start = time.perf_counter()
    opener = tool(name).opener(job)
    imported = time.perf_counter()
    opened = opener()
    loaded = time.perf_counter()
    drawn: list[Drawn] = []
    seconds: list[float] = []
    for _ in range(draws):
        before = time.perf_counter()
        drawn.append(opened.draw())
        seconds.append(time.perf_counter() - before)
    for one in drawn:
        image = drawing.picture(one.pixels)
        if image.size != (job.side, job.side):
            raise drawing.NoPicture(f"The picture is {image.size}, not {job.side}x{job.side}.")
    image.save(target)
    values = {"import_s": imported - start, "load_s": loaded - imported, "first_image_s": seconds[0]}
    values["image_s"] = seconds[-1]
    ends = drawn[-1].ends
    if len(ends) > 1:
        steps = [after - before for before, after in itertools.pairwise(ends)]
        values["step_ms"] = statistics.median(steps) * 1e3
    return {**values, **opened.values}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="draw.py", description="A tool, timed in its own environment.")
    parser.add_argument("tool")
    parser.add_argument("model", type=Path)
    parser.add_argument("--variant", default="")
    for name, kind in (("noise", Path), ("picture", Path), ("prompt", str), ("seed", int), ("side", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    given = parser.parse_args(arguments)
    drawing = tool("drawing")
    job = drawing.Job(
        given.model, given.noise, given.variant, given.prompt, given.seed, given.side, given.steps, given.guidance
    )
    try:
        values = figures(given.tool, job, given.picture, given.draws)
    except drawing.NoPicture as exc:
        print(exc, file=sys.stderr)
        return 1
    print("VITRIFY_BENCH " + json.dumps(values), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
