"""The first benches: `python -m vitrify.bench.first --work DIR [--only export|classify]`.

export: a whole Stable Diffusion 1.5 without its weights, a second one whose graphs the cache holds, and torch's own
export of the UNet alone. classify: process start to printed label, beside transformers. Models are of full size with
random weights, made once under DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ..core.errors import BadInput, VitrifyError
from ..core.progress import Event
from .machine import describe_machine, versions
from .measure import Case, CaseFailed, measure
from .models import SD15, VIT_B, make_picture
from .records import Sample
from .summary import summarize, to_json, to_table

BENCHES = ("export", "classify")
ROUNDS = 3
# An export in practice is always a first run and a warm-up would cost minutes; a label is asked for again and again.
WARMUP = {"export": 0, "classify": 1}
TIMEOUT = 3600.0
BASELINES = {"export": "torch.onnx.export, UNet only", "classify": "transformers pipeline"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_PIPELINE = """
import json, sys
from transformers import pipeline
print(json.dumps(pipeline("image-classification", model=sys.argv[1])(sys.argv[2])))
"""


def export_cases(work: Path) -> list[Case]:
    """The exports; each starts without its own result, and the first one without a cache."""
    models, made, scratch = work / "models", work / "exports", work / "scratch"
    cache = scratch / "cache"
    first, second, dynamo = made / SD15[0], made / SD15[1], made / "dynamo"

    def environment(name: str) -> dict[str, str]:
        # What a run leaves anywhere else than in its result counts as its disk, so that it is all put here.
        home = scratch / name
        return {
            **_OFFLINE,
            "VITRIFY_CACHE": str(cache),
            "XDG_CACHE_HOME": str(home / "xdg"),
            "HF_HOME": str(home / "hf"),
            "TMPDIR": str(home / "tmp"),
        }

    def clear(name: str, *folders: Path) -> None:
        for folder in (*folders, scratch / name):
            shutil.rmtree(folder, ignore_errors=True)
        (scratch / name / "tmp").mkdir(parents=True)

    known: dict[str, set[tuple[int, int]]] = {}

    def start_second() -> None:
        if not cache.is_dir():
            raise BadInput("The graph cache is empty: the first export left nothing in it.", "See why it failed.")
        clear("second", second)
        known["cache"] = inodes([cache])

    return [
        Case(
            "vitrify, whole pipeline",
            [sys.executable, "-m", "vitrify", "export", str(models / SD15[0]), "-o", str(first)],
            environment("first"),
            group="export",
            before=lambda: clear("first", first, cache),
            after=lambda _: disk([first, cache, scratch / "first"], inodes([models])),
        ),
        Case(
            "vitrify, second model",
            [sys.executable, "-m", "vitrify", "export", str(models / SD15[1]), "-o", str(second)],
            environment("second"),
            group="export",
            before=start_second,
            after=lambda _: disk([second, cache, scratch / "second"], inodes([models]) | known["cache"]),
        ),
        Case(
            BASELINES["export"],
            [sys.executable, "-m", "vitrify.bench.dynamo_export", str(models / SD15[0] / "unet"), str(dynamo)],
            environment("dynamo"),
            group="export",
            before=lambda: clear("dynamo", dynamo),
            after=lambda _: disk([dynamo, scratch / "dynamo"], inodes([models])),
        ),
    ]


def classify_cases(work: Path) -> list[Case]:
    """Process start to label, both from disk; a label that differs between the two is a failure."""
    model, picture = work / "models" / VIT_B, work / "picture.png"
    artifact = work / "artifacts" / VIT_B
    said: dict[str, str] = {}

    def agree(case: str, text: str) -> Mapping[str, float]:
        said[case] = best_label(text)
        if len(set(said.values())) > 1:
            raise BadInput(f"The labels differ: {said}.", f"Check the artifact: vitrify verify {artifact}")
        return {}

    return [
        Case(
            "vitrify classify",
            [sys.executable, "-m", "vitrify", "classify", str(artifact), str(picture), "--json"],
            {**_OFFLINE, "VITRIFY_CACHE": str(work / "cache")},
            group="classify",
            after=lambda text: agree("vitrify", text),
        ),
        Case(
            BASELINES["classify"],
            [sys.executable, "-c", _PIPELINE, str(model), str(picture)],
            _OFFLINE,
            group="classify",
            after=lambda text: agree("transformers", text),
        ),
    ]


def inodes(folders: Iterable[Path]) -> set[tuple[int, int]]:
    """(device, inode) of every file below these folders."""
    return set(_sizes(folders))


def disk(folders: Iterable[Path], known: set[tuple[int, int]]) -> dict[str, float]:
    """New disk in MB: the sizes of the files below `folders`, each inode once, without those that were there before."""
    return {"disk_mb": sum(size for key, size in _sizes(folders).items() if key not in known) / 1e6}


def _sizes(folders: Iterable[Path]) -> dict[tuple[int, int], int]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found[(status.st_dev, status.st_ino)] = status.st_size
    return found


def best_label(text: str) -> str:
    """The label with the highest score in the JSON that a classifier printed.

    Raises:
        BadInput: it printed none.
    """
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise BadInput(f"{text[:200]!r} is not JSON.", "Run the command alone.") from exc
    found = list(_scored(data))
    if not found:
        raise BadInput(f"{text[:200]!r} holds no label with a score.", "Run the command alone.")
    return max(found)[1]


def _scored(data: Any) -> Iterable[tuple[float, str]]:
    if isinstance(data, dict) and "label" in data and "score" in data:
        yield float(data["score"]), str(data["label"])
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _scored(item)


def prepare(bench: str, work: Path) -> None:
    """Make what the bench needs and does not measure, in processes of their own so that the harness stays small."""
    kind = "sd15" if bench == "export" else "vit-b"
    _untimed(f"making the random {kind}", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), kind])
    if bench == "classify":
        make_picture(work / "picture.png")
        # always made anew: a result of an older version would be measured else
        artifact = work / "artifacts" / VIT_B
        shutil.rmtree(artifact, ignore_errors=True)
        command = [sys.executable, "-m", "vitrify", "export", str(work / "models" / VIT_B), "-o", str(artifact)]
        _untimed("exporting the classifier", command, {"VITRIFY_CACHE": str(work / "cache")})


def _untimed(what: str, command: Sequence[str], env: Mapping[str, str] = _OFFLINE) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, env={**os.environ, **_OFFLINE, **env}, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join(f"  {line}" for line in done.stderr.splitlines()[-12:])
        raise BadInput(f"{what} failed (exit {done.returncode}):\n{said}", f"Run it alone: {' '.join(command)}")


def run(bench: str, work: Path, rounds: int, warmup: int | None) -> list[Sample]:
    """Prepare and measure one bench; the samples are appended to WORK/BENCH.jsonl."""
    prepare(bench, work)
    cases = export_cases(work) if bench == "export" else classify_cases(work)
    return measure(
        cases,
        rounds=rounds,
        warmup=WARMUP[bench] if warmup is None else warmup,
        report=_progress,
        out=work / f"{bench}.jsonl",
        timeout=TIMEOUT,
    )


def _progress(event: Event) -> None:
    if event.note:
        print(f"[{event.done:.0f}/{event.total or 0:.0f}] {event.note}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.first", description="The first benches.")
    parser.add_argument("--work", type=Path, required=True, help="folder for models (9 GB), results and samples")
    parser.add_argument("--only", choices=BENCHES, help="run one bench")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted rounds (default %(default)s)")
    parser.add_argument("--warmup", type=int, help=f"rounds before them (default: {WARMUP})")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of tables")
    given = parser.parse_args(arguments)
    # a polite kill cleans up as Ctrl-C does
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _main(given)
    except KeyboardInterrupt:
        print("Interrupted; what was measured is in the files.", file=sys.stderr)
        return 130


def _main(given: argparse.Namespace) -> int:
    work = given.work.absolute()
    samples: list[Sample] = []
    errors: list[VitrifyError] = []
    for bench in [given.only] if given.only else BENCHES:
        try:
            samples += run(bench, work, given.rounds, given.warmup)
        except CaseFailed as exc:
            samples += exc.samples
            errors.append(exc)
        except VitrifyError as exc:
            errors.append(exc)
    measured = {sample.case for sample in samples}
    summary = summarize(samples, {group: case for group, case in BASELINES.items() if case in measured})
    if given.json:
        document = {"machine": describe_machine(), "versions": versions(), **to_json(summary)}
        if errors:
            what, fix = "\n".join(e.what for e in errors), " ".join(e.fix for e in errors)
            document["error"] = {"code": errors[0].code, "what": what, "fix": fix}
        print(json.dumps(document, indent=1))
    elif samples:
        machine = describe_machine()
        print(f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}, {machine['python']}\n")
        print(to_table(summary))
    for error in errors:
        print(f"{error.what}\n{error.fix}", file=sys.stderr)
    return errors[0].exit_code if errors else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
