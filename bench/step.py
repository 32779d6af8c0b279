"""One opened model, timed from inside: what a step takes once it is warm, and what it holds in memory.

Run as `python -m vitrify.bench.step HOW MODEL INPUTS`, where HOW is one of `openers` and INPUTS a file of
`bench.inputs`. The output is held against the one in that file: a step that computes something else is a failure and
no figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ProofFailed, VitrifyError
from ..core.tensors import Array
from .inputs import read_inputs
from .openers import OPENERS, Model, Vitrified

STEPS, WARMUP = 5, 2
FLOAT32_DB = 60.0
STATUS = Path("/proc/self/status")


def held(moment: str) -> dict[str, float]:
    """Resident memory of this process in MB, with and without what is mapped from files; nothing but on Linux.

    What is mapped, such as weights that a library has not copied, is the page cache's: the system takes it back when
    it needs room, and processes share it.
    """
    if not STATUS.exists():
        return {}
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    sizes = {key: int(fields[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "RssAnon")}
    return {f"{moment}_mb": sizes["VmRSS"], f"{moment}_anonymous_mb": sizes["RssAnon"]}


def check(output: Array, expected: Array, minimum_db: float) -> float:
    """How many dB the output's error lies below the output.

    Raises:
        ProofFailed: fewer than `minimum_db`, or it holds NaN, or the shapes differ.
    """
    from ..proof.parity import compare

    found = compare("The output", expected, output, {})
    if not found.snr_db >= minimum_db:
        raise ProofFailed(
            f"The output's error is {found.snr_db:.1f} dB below the output of the model in eager mode; "
            f"{minimum_db:g} dB are wanted.",
            "Compare the artifact with its source: vitrify verify ARTIFACT.",
        )
    return found.snr_db


def measure_steps(how: str, model: Model, inputs: Path, steps: int, minimum_db: float) -> dict[str, float]:
    """Open the model, run it warm, and time it.

    Returns:
        load_s: opening, without imports. step_ms: the median of `steps`, after two that are not counted.
        compile_s: what of it and of the first calls was compiling, where the runtime tells.
        loaded_mb, loaded_anonymous_mb, ran_mb, ran_anonymous_mb: memory when it is open, and after the steps.

    Raises:
        ProofFailed, BadInput: see `check` and `read_inputs`; and what the opener raises.
    """
    tensors, expected = read_inputs(inputs)
    opener = OPENERS[how](model)
    start = time.perf_counter()
    step = opener(tensors)
    values = {"load_s": time.perf_counter() - start, **held("loaded")}
    milliseconds = []
    for _ in range(WARMUP + steps):
        start = time.perf_counter()
        output = step()
        milliseconds.append(1000 * (time.perf_counter() - start))
    values |= {"step_ms": statistics.median(milliseconds[WARMUP:]), **held("ran")}
    details = step.details if isinstance(step, Vitrified) else {}
    if "compile_s" in details:
        values["compile_s"] = float(details["compile_s"])
    found = check(output, expected, minimum_db)
    print(f"error {found:.1f} dB below the output of the model in eager mode; steps of", *map(int, milliseconds), "ms")
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.step", description="Time the steps of one model.")
    parser.add_argument("how", choices=OPENERS)
    parser.add_argument("path", type=Path, help="an artifact, a graph or a model's folder")
    parser.add_argument("inputs", type=Path, help="a file of `python -m vitrify.bench.inputs`")
    parser.add_argument("--component", default="", help="of the artifact")
    parser.add_argument("--runtime", default="", help="that opens it")
    parser.add_argument("--option", action="append", default=[], help="of the runtime, as compile=regional; several")
    parser.add_argument("--threads", type=int, default=0, help="0: the library's own choice")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"timed, after {WARMUP} that are not (%(default)s)")
    parser.add_argument(
        "--minimum-db", type=float, default=FLOAT32_DB, help="how near the output must come (%(default)s)"
    )
    given = parser.parse_args(arguments)
    model = Model(given.path, given.component, given.runtime, given.threads, tuple(given.option))
    try:
        values = measure_steps(given.how, model, given.inputs, given.steps, given.minimum_db)
    except VitrifyError as exc:
        print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
        return exc.exit_code
    print("VITRIFY_BENCH " + json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
