"""Cases that time the steps of one model: through vitrify, by a library alone, in eager mode, and quantized."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .compiled import Compiled, artifact, export
from .measure import Case
from .preparing import OFFLINE, forget, made, required, untimed
from .summary import Columns

# Only that the model was computed and not something else: of random weights, quality cannot be told.
QUANTIZED_DB = 5.0
COLUMNS = Columns(
    ("step_ms", "load_s", "compile_s", "loaded_mb", "loaded_anonymous_mb", "ran_mb", "ran_anonymous_mb", "peak_mb"),
    ("step_ms", "ran_anonymous_mb", "peak_mb"),
)


@dataclass(frozen=True)
class Steps:
    """What the cases of a bench share.

    model: its folder in WORK/models. component: of its artifact. eager: the library that runs it from its folder;
    part: where in that folder. sizes: of the inputs, by the manifest's symbols.
    """

    bench: str
    model: str
    component: str
    eager: str
    part: str
    sizes: Mapping[str, int]

    def prepare(self, work: Path) -> None:
        """Export the model, and draw the inputs and compute the output that every case is held against."""
        export(work, self.model)
        source, target = work / "models" / self.model / self.part, self._inputs(work)
        command = [sys.executable, "-m", "vitrify.bench.inputs", str(artifact(work, self.model)), self.component]
        command += [self.eager, str(source), str(target), *(f"{name}={size}" for name, size in self.sizes.items())]
        made(f"drawing the inputs of {self.model}", target, command, [source, artifact(work, self.model)])

    def in_eager_mode(self, work: Path, name: str) -> Case:
        return self._case(work, name, self.eager, work / "models" / self.model / self.part)

    def by_library(self, work: Path, name: str, library: str) -> Case:
        """A library alone, on the graph of the artifact."""
        return self._case(work, name, library, self._graph(work))

    def by_vitrify(self, work: Path, name: str, runtime: str) -> Case:
        """The same graph, opened by us."""
        return self._case(work, name, "vitrify", artifact(work, self.model), "--runtime", runtime)

    def compiled(
        self,
        work: Path,
        name: str,
        one: Compiled,
        runtime: str = "",
        more: Sequence[str] = (),
        *,
        cold: bool = False,
        filled: bool = False,
    ) -> Case:
        """What a recipe made of it, opened by us; a failure where it was not made.

        Args:
            runtime: default: what it is for. more: options of it, such as "compile=regional".
            cold: the cache is empty each time, so that what is compiled when it is opened is compiled then.
            filled: the cache holds what an earlier run, which nobody times, compiled.
        """
        options = ["--runtime", runtime or one.target]
        options += [word for option in more for word in ("--option", option)]
        if one.recipe != "fp32":
            options += ["--minimum-db", f"{QUANTIZED_DB:g}"]
        cache = work / "cache-of-steps" / re.sub(r"\W+", "-", f"{self.bench} {name}")

        def before() -> None:
            required(one.folder(work))
            if cold:
                forget(cache)
            elif filled and not cache.exists():
                untimed(f"filling the cache of {name}", case.command, case.env)

        case = self._case(work, name, "vitrify", one.folder(work), *options, before=before, VITRIFY_CACHE=str(cache))
        return case

    def _case(
        self,
        work: Path,
        name: str,
        how: str,
        path: Path,
        *options: str,
        before: Callable[[], None] | None = None,
        **environment: str,
    ) -> Case:
        command = [sys.executable, "-m", "vitrify.bench.step", how, str(path), str(self._inputs(work)), *options]
        if how == "vitrify":
            command += ["--component", self.component]
        return Case(name, command, {**OFFLINE, **environment}, group=self.bench, before=before)

    def _inputs(self, work: Path) -> Path:
        return work / "inputs" / f"{self.bench}.safetensors"

    def _graph(self, work: Path) -> Path:
        folder = artifact(work, self.model)
        return folder / self.component / "model.onnx" if (folder / self.component).is_dir() else folder / "model.onnx"
