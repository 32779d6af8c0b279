"""The artifact: a folder whose artifact.json is all that a reader needs to understand the rest.

Reading one imports no runtime and trusts nothing: paths that leave the folder, pickles, unknown schemas, missing
files and wrong sizes are refused first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import BadArtifact, Busy
from .publish import disk_errors, locked
from .tensors import TensorSpec

SCHEMA = 1
MANIFEST = "artifact.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
NOT_RUN = "not run"
# an IR's .bin is plain bytes beside its .xml; formats below say where it is allowed
_OPENVINO_WEIGHTS = ".bin"
_TOKENIZER = "openvino_tokenizer.bin"  # an IR too, of no component: OpenVINO GenAI opens it, we do not

Json = dict[str, Any]


@dataclass(frozen=True)
class WeightFile:
    """A file inside the artifact, mostly of weights: path from the folder's root, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str | None = None

    def to_json(self) -> Json:
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, data: Json) -> WeightFile:
        return cls(data["path"], int(data["bytes"]), data.get("sha256"))


@dataclass(frozen=True)
class Component:
    """One graph with its weights: what a runtime opens.

    format: onnx, torch, openvino, tensorrt, ... the manifest names it, nothing is guessed.
    root: the artifact's folder; graph and weights are paths below it.
    shapes: for each symbol of the inputs its (min, optimum, max).
    """

    name: str
    format: str
    graph: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    weights: tuple[WeightFile, ...] = ()
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    precision: Json = field(default_factory=lambda: {"recipe": "fp32", "weights": "float32", "activations": "float32"})
    requires: Json = field(default_factory=dict)
    proof: Json = field(default_factory=lambda: {"graph": NOT_RUN, "weights": NOT_RUN, "numeric": NOT_RUN})
    details: Json = field(default_factory=dict)
    root: Path = Path()

    @property
    def graph_path(self) -> Path:
        return self.root / self.graph

    def usual_sizes(self) -> dict[str, tuple[int, ...]] | None:
        """The optimum of every input's sizes, by name; None where `shapes` does not say them all."""
        found: dict[str, tuple[int, ...]] = {}
        for name, spec in self.inputs.items():
            dims = [d if isinstance(d, int) else self.shapes.get(d, (0, 0, 0))[1] for d in spec.shape]
            if any(d == 0 for d in dims):
                return None
            found[name] = tuple(dims)
        return found

    def takes_pictures(self) -> bool:
        """Whether it may have convolutions over a picture or a latent; text encoders have none."""
        return any(len(spec.shape) == 4 for spec in self.inputs.values())

    def to_json(self) -> Json:
        return {
            "format": self.format,
            "graph": self.graph,
            "weights": [w.to_json() for w in self.weights],
            "inputs": [spec.to_json(name) for name, spec in self.inputs.items()],
            "outputs": [spec.to_json(name) for name, spec in self.outputs.items()],
            "shapes": {k: list(v) for k, v in self.shapes.items()},
            "precision": self.precision,
            "requires": self.requires,
            "proof": self.proof,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, name: str, data: Json, root: Path) -> Component:
        return cls(
            name=name,
            format=str(data["format"]),
            graph=str(data["graph"]),
            inputs={s["name"]: TensorSpec.from_json(s) for s in data["inputs"]},
            outputs={s["name"]: TensorSpec.from_json(s) for s in data["outputs"]},
            weights=tuple(WeightFile.from_json(w) for w in data.get("weights", [])),
            shapes={k: (int(v[0]), int(v[1]), int(v[2])) for k, v in data.get("shapes", {}).items()},
            precision=dict(data.get("precision", {})),
            requires=dict(data.get("requires", {})),
            proof=dict(data.get("proof", {})),
            details=dict(data.get("details", {})),
            root=root,
        )


@dataclass(frozen=True)
class Artifact:
    """A folder of components and everything needed to run them.

    model: source, architecture, revision. pipeline: family, tasks, scheduler, tokenizers, labels, preprocessing.
    others: every file that is no weight (graphs, configs, tokenizers), as `with_hashes` found it.
    """

    root: Path
    id: str
    model: Json
    pipeline: Json
    components: Mapping[str, Component]
    proof: Json = field(default_factory=dict)
    evaluation: Json = field(default_factory=dict)
    built: Json = field(default_factory=dict)
    others: tuple[WeightFile, ...] = ()

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def recipe(self) -> str:
        """The recipes that its components were compiled with, such as "int8-weights"; "fp32" without one.

        Where another tool's folder says none, what the weights are stored in, such as "int8".
        """
        recipes = {
            str(c.precision.get("recipe", "fp32") or c.precision.get("weights")) for c in self.components.values()
        }
        return "+".join(sorted(recipes - {"fp32"})) or "fp32"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all files of weights; one that several components list, or that is linked, counts once."""
        return sum({self._inode(w): w.bytes for c in self.components.values() for w in c.weights}.values())

    def _inode(self, weights: WeightFile) -> tuple[int, int] | str:
        try:
            found = (self.root / weights.path).stat()
        except OSError:
            return weights.path
        return found.st_dev, found.st_ino

    def to_json(self) -> Json:
        return {
            "schema": SCHEMA,
            "id": self.id,
            "model": self.model,
            "pipeline": self.pipeline,
            "components": {n: c.to_json() for n, c in self.components.items()},
            "proof": self.proof,
            "evaluation": self.evaluation,
            "built": self.built,
            "files": [f.to_json() for f in self.others],
        }

    def save(self) -> None:
        """Write artifact.json into the folder, atomically.

        Raises:
            DiskError: the disk is full or read-only; the manifest that was there stays.
            Busy: another process is writing the folder, or has put another artifact there meanwhile.
        """
        with disk_errors(self.root), locked(self.root.resolve()):
            if is_artifact(self.root) and _read_manifest(self.root / MANIFEST).get("id") != self.id:
                raise Busy(f"{self.root} was replaced by another artifact meanwhile.", "Run it again.")
            scratch = self.root / f".{MANIFEST}.part"
            try:
                scratch.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
                os.replace(scratch, self.root / MANIFEST)
            finally:
                scratch.unlink(missing_ok=True)

    def with_hashes(self) -> Artifact:
        """The same with size and sha256 of every file in the folder that is no component's weights."""
        weights = {w.path for c in self.components.values() for w in c.weights}
        found = []
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            name = path.relative_to(self.root).as_posix()
            if name not in weights and name != MANIFEST:
                found.append(WeightFile(name, path.stat().st_size, hash_file(path)))
        return replace(self, others=tuple(found))

    @classmethod
    def load(cls, root: Path, *, checksums: bool = False) -> Artifact:
        """Read and verify the folder: schema, paths, files, sizes, and hashes when asked.

        Raises:
            BadArtifact: says what is wrong with which file.
        """
        root = Path(root)
        data = _read_manifest(root / MANIFEST)
        try:
            artifact = cls(
                root=root,
                id=str(data["id"]),
                model=dict(data["model"]),
                pipeline=dict(data["pipeline"]),
                components={n: Component.from_json(n, c, root) for n, c in data["components"].items()},
                proof=dict(data.get("proof", {})),
                evaluation=dict(data.get("evaluation", {})),
                built=dict(data.get("built", {})),
                others=tuple(WeightFile.from_json(f) for f in data.get("files", [])),
            )
            for table, entries in (
                (artifact.model, ("architecture", "source")),
                (artifact.pipeline, ("family", "tasks")),
            ):
                for entry in entries:
                    table[entry]  # what every reader shows
            named = list(artifact.files())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as exc:
            raise BadArtifact(
                f"{root / MANIFEST} does not describe an artifact ({type(exc).__name__}: {exc}).",
                "Export the model again.",
            ) from exc
        for path, _ in named:
            if not isinstance(path, str):
                raise BadArtifact(f"{root / MANIFEST} names {path!r}, which is no path.", "Export the model again.")
        artifact.verify(checksums=checksums)
        return artifact

    def files(self) -> Iterator[tuple[str, str]]:
        """(path, format of its component) of every file that the manifest names; pipeline files count as `data`."""
        for component in self.components.values():
            yield component.graph, component.format
            for weight in component.weights:
                yield weight.path, component.format
        for path in dict(self.pipeline.get("files", {})).values():
            yield path, "data"
        for other in self.others:
            yield other.path, "data"

    def recorded(self) -> Iterator[WeightFile]:
        """Every file whose size the manifest holds."""
        for component in self.components.values():
            yield from component.weights
        yield from self.others

    def unhashed(self) -> list[str]:
        """The files that the manifest names and holds no hash of: all, in a folder that another tool wrote."""
        hashed = {f.path for f in self.recorded() if f.sha256}
        return sorted({path for path, _ in self.files()} - hashed)

    def verify(self, *, checksums: bool = False) -> None:
        """Hold the folder against its manifest.

        Raises:
            BadArtifact: a path leaves the folder, a pickle, a missing file, a wrong size or hash.
        """
        others = {file.path for file in self.others}
        for path, kind in self.files():
            check_inside(self.root, path)
            pure = PurePosixPath(path)
            ending = pure.suffix.lower()
            tokenizer = path in others and pure.name == _TOKENIZER and str(pure.with_suffix(".xml")) in others
            plain = (kind == "openvino" and ending == _OPENVINO_WEIGHTS) or tokenizer
            if ending in PICKLES and not plain:
                raise BadArtifact(f"{path} may be a pickle, which can run code when loaded.", "Use safetensors files.")
            if not (self.root / path).is_file():
                raise BadArtifact(f"{self.root / path} is missing.", "Copy the whole folder again or export again.")
        for file in self.recorded():
            size = (self.root / file.path).stat().st_size
            if size != file.bytes:
                raise BadArtifact(
                    f"{file.path} has {size} bytes, the manifest says {file.bytes}.",
                    "Copy the file again or export again.",
                )
            if checksums and file.sha256 and hash_file(self.root / file.path) != file.sha256:
                raise BadArtifact(
                    f"{file.path} is not the file that was built: its sha256 differs from the manifest's.",
                    "Copy the file again or export again.",
                )


def check_inside(root: Path, path: str) -> None:
    """Refuse a manifest's path that is absolute, climbs out, or leads out of `root` through a link on its way.

    Raises:
        BadArtifact: names the path.
    """
    pure = PurePosixPath(path)
    inside = not pure.is_absolute() and not PureWindowsPath(path).drive and ".." not in pure.parts
    inside = inside and bool(path) and not {"\\", "\0"} & set(path)
    try:
        # resolved even where the last part is no link: a folder on the way may be one
        inside = inside and (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links that go round in a circle
        inside = False
    if not inside:
        raise BadArtifact(f"The manifest names {path!r}, a path outside {root}.", "Do not use this artifact.")


def hash_file(path: Path) -> str:
    """sha256 of a file, in hex; reads 8 MB at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def identity(component: Component, weight: WeightFile) -> list[Any]:
    """What tells these weights from any others, without reading gigabytes at each start.

    The manifest's hash alone would serve the old weights when a file was swapped and the manifest was not.
    """
    path = component.root / weight.path
    stat = path.stat()
    return [weight.path, weight.sha256 or hash_file(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]


def is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _read_manifest(path: Path) -> Json:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise BadArtifact(
            f"{path.parent} is not an artifact: it has no {path.name}.", f"Make one: vitrify export {path.parent}"
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:  # no text, no JSON, or JSON nested without end
        raise BadArtifact(f"{path} cannot be read: {exc}.", "Copy the file again or export again.") from exc
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise BadArtifact(f"{path} names no schema.", "Export the model again.")
    if schema > SCHEMA:
        raise BadArtifact(
            f"{path} has schema {schema}; this version reads up to {SCHEMA}.", "pip install --upgrade vitrify"
        )
    return dict(data)
