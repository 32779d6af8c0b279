"""An ONNX component -> a TensorRT or TensorRT-RTX plan.

TensorRT-RTX needs no GPU for it: the plan holds the optimized graph with its weights, and the kernels for one GPU are
made where it runs. TensorRT times kernels while it builds, so it builds where the plan will run.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..core.artifact import NOT_RUN, Component, WeightFile, hash_file
from ..core.errors import BadArtifact, BadInput, RuntimeFailure, UsageError
from ..core.progress import Event, Report, silent
from ..core.publish import disk_errors
from ..core.registry import load_runtime
from ..core.tensors import TensorSpec
from ..runtimes.cuda import find_gpus
from ..runtimes.trt import DTYPES, message_log, plain
from .libraries import export_libraries

FLAVOURS = ("tensorrt-rtx", "tensorrt")
PRECISIONS = ("float32", "float16")
# "By default, an engine built by TensorRT-RTX can be run on GPU devices with compute capability 8.0, 8.6, 8.9, 12.0,
# and later": docs.nvidia.com/deeplearning/tensorrt-rtx, CPU-Only AOT and TensorRT-RTX Engines
DEFAULT_TARGET = "8.0+"
_POLL = 0.1  # seconds between looks at a build that is under way


def build_plan(
    component: Component,
    root: Path,
    *,
    flavour: str = "tensorrt-rtx",
    precision: str = "float32",
    compute_capability: str | None = None,
    report: Report = silent,
) -> Component:
    """Write <root>/<name>/model.plan, and give the component that describes it.

    Args:
        component: of the format onnx; its `shapes` say which sizes the plan can run.
        precision: "float16" computes in it, but a VAE, whose pictures would be black.
        compute_capability: the GPUs to build for, such as "8.6" or "8.6,8.9". None: what the library does by itself,
            which is 8.0 and newer for TensorRT-RTX and the first GPU of this machine for TensorRT.

    Returns:
        A component whose one file of weights is the plan itself, so that loading the artifact checks its size and hash.

    Raises:
        BadInput: the library cannot parse or build the graph; says which node.
        BadArtifact: the graph is missing.
        UsageError: no such flavour, precision or compute capability.
        DeviceError: TensorRT builds on a GPU only, and there is none.
        MissingDependency: the library, or for float16 the `export` extra, is not installed.
        DiskError: the disk is full or read-only.
    """
    if flavour not in FLAVOURS:
        raise UsageError(f"There is no {flavour!r}.", f"Give {' or '.join(FLAVOURS)}.")
    if precision not in PRECISIONS:
        raise UsageError(f"A plan computes in {' or '.join(PRECISIONS)}, not {precision}.", "Give one of them.")
    if component.format != "onnx":
        raise BadInput(f"{component.name} is {component.format}; plans are made from onnx.", "Compile its source.")
    runtime = load_runtime(flavour)
    trt, title = runtime.library, f"{runtime.title} {runtime.version}"
    target = _target(trt, flavour, compute_capability)
    if precision == "float16" and str(component.details.get("kind", component.name)).startswith("vae"):
        precision = "float32"
        report(Event(f"build {component.name}", note=f"{component.name} stays in float32: in float16 it is black."))
    log = message_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    _parse(parser, component, precision, title)
    _check_network(trt, network, component)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it would compute float32 with 10 bits of mantissa
    config.add_optimization_profile(_profile(builder, component))
    if flavour == "tensorrt-rtx" and compute_capability is not None:
        names = _members(target)
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    path = root / component.name / "model.plan"
    build = _Build(trt, builder, network, config)
    with disk_errors(root):
        size, digest = _write(build, path, f"build {component.name}", report, lambda: _failed(component, title, log))
    del parser  # it owns the weights that the network points to
    relative = f"{component.name}/model.plan"
    source = {"format": component.format, "graph": hash_file(component.graph_path)}
    return replace(
        component,
        format=flavour,
        graph=relative,
        weights=(WeightFile(relative, size, digest),),
        precision=_precision(component, precision),
        requires={
            "runtime": f"{flavour}=={runtime.version}",
            # NVIDIA calls plans of TensorRT-RTX portable between Linux and Windows, those of TensorRT bound to one
            "os": platform.system() if flavour == "tensorrt" else None,
            "compute_capability": target,
        },
        proof={"graph": NOT_RUN, "weights": NOT_RUN, "numeric": NOT_RUN},
        details=component.details
        | {"source": source | {"weights": [w.sha256 for w in component.weights], "proof": dict(component.proof)}},
        root=root,
    )


def _target(trt: Any, flavour: str, given: str | None) -> str:
    """What the manifest says of the GPUs: see `runtimes.trt.fits`."""
    if flavour == "tensorrt":
        own = "{}.{}".format(*find_gpus()[0].capability)
        if given not in (None, own):
            raise UsageError(f"TensorRT builds for its own GPU, {own}, not for {given}.", "Build it where it will run.")
        return own
    if given is None:
        return DEFAULT_TARGET
    known = [n.removeprefix("SM") for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
    wanted = [part.strip() for part in given.split(",")]
    if not all(part.replace(".", "") in known and part[-2:-1] == "." for part in wanted):
        have = ", ".join(f"{n[:-1]}.{n[-1]}" for n in known)
        raise UsageError(f"{given} is no compute capability that TensorRT-RTX builds for.", f"They are {have}.")
    return ",".join(dict.fromkeys(wanted))


def _members(target: str) -> list[str]:
    return [f"SM{part.replace('.', '')}" for part in target.split(",")]


def _parse(parser: Any, component: Component, precision: str, title: str) -> None:
    """Read the graph into the parser's network; weights beside the graph are mapped, not copied."""
    path = component.graph_path
    if not path.is_file():
        raise BadArtifact(f"{path} is missing.", "Copy the whole folder again or export again.")
    half, rounded = precision != "float32", component.precision.get("activations") != "float32"
    changed = half or rounded
    parsed = parser.parse(_changed(path, half), str(path)) if changed else parser.parse_from_file(str(path))
    if not parsed:
        error = parser.get_error(0) if parser.num_errors else None
        said = plain(error.desc()) if error else "the parser does not say why"
        node = " ".join(part for part in (error.node_operator(), error.node_name()) if part) if error else ""
        at = f" at the node {node}" if node else ""
        raise BadInput(f"{title} cannot read {component.graph}{at}: {said}", "Compile it for another runtime.")


@export_libraries()
def _changed(path: Path, half: bool) -> bytes:
    """The graph as TensorRT takes it; its weights stay where they are."""
    import onnx_ir as ir

    from .half import compute_in_half
    from .signed import make_signed

    model = ir.load(path)
    make_signed(model)
    if half:
        compute_in_half(model)
    return bytes(ir.to_proto(model).SerializeToString())


def _check_network(trt: Any, network: Any, component: Component) -> None:
    """Hold the network's inputs and outputs against the component's."""
    found = {n: _spec(network.get_input(n)) for n in range(network.num_inputs)}
    made = {n: _spec(network.get_output(n)) for n in range(network.num_outputs)}
    for kind, specs, has in (
        ("input", component.inputs, dict(found.values())),
        ("output", component.outputs, dict(made.values())),
    ):
        if set(specs) != set(has):
            raise BadInput(
                f"{component.graph} has the {kind}s {', '.join(has)}; the manifest says {', '.join(specs)}.",
                "Export the model again.",
            )
        for name, spec in specs.items():
            dtype, shape = has[name]
            if dtype is not spec.dtype or len(shape) != len(spec.shape) or not _agree(shape, spec):
                raise BadInput(
                    f"The {kind} {name} of {component.graph} is {dtype or 'of another type'} {list(shape)}; the "
                    f"manifest says {spec.dtype} {list(spec.shape)}.",
                    "Export the model again.",
                )
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.is_shape_tensor:
            raise BadInput(f"The values of {tensor.name} decide sizes.", "Compile it for another runtime.")


def _spec(tensor: Any) -> tuple[str, tuple[Any, tuple[int, ...]]]:
    return tensor.name, (DTYPES.get(tensor.dtype.name), tuple(tensor.shape))


def _agree(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """-1 is a size that the network leaves open."""
    return all(has in (-1, told) or isinstance(told, str) for has, told in zip(shape, spec.shape, strict=True))


def _profile(builder: Any, component: Component) -> Any:
    """min, optimum and max of every input."""
    profile = builder.create_optimization_profile()
    for name, spec in component.inputs.items():
        unknown = [d for d in spec.shape if isinstance(d, str) and d not in component.shapes]
        if unknown:
            raise BadInput(f"The manifest gives no sizes for {unknown[0]} of {name}.", "Export the model again.")
        sizes = [tuple(component.shapes[d][k] if isinstance(d, str) else d for d in spec.shape) for k in range(3)]
        try:
            profile.set_shape(name, *sizes)
        except (ValueError, RuntimeError) as exc:
            raise BadInput(
                f"{component.name} cannot be built for {name} of {' to '.join(str(list(s)) for s in sizes)}: {exc}.",
                "Give sizes that grow from the least to the most.",
            ) from exc
    return profile


def _precision(component: Component, computed: str) -> dict[str, Any]:
    """float32 is what a plan without a recipe holds, whatever the weights were stored in before."""
    plain = component.precision.get("recipe") == "fp32"
    if computed == "float16":
        said = {"recipe": "fp16", "weights": "float16"} if plain else {}
        activations = str(component.precision.get("activations", "float32")).replace("float32", "float16")
        return component.precision | said | {"activations": activations}
    return component.precision | ({"weights": "float32"} if plain else {})


def _failed(component: Component, title: str, log: Any) -> Exception:
    said = log.first()
    if "memory" in said.lower() or "alloc" in said.lower():
        return RuntimeFailure(f"{title} ran out of memory while it built {component.name}: {said}", "Use more memory.")
    return BadInput(
        f"{title} does not build {component.graph}: {said}",
        "Compile it in another precision, for newer GPUs, or for another runtime.",
    )


class _Build:
    """A build under way in a thread of its own: the library would not notice Ctrl-C while it works."""

    def __init__(self, trt: Any, builder: Any, network: Any, config: Any) -> None:
        self.cancelled = False
        self.trouble: BaseException | None = None  # what writing raised, which the library swallows
        self.digest = hashlib.sha256()
        self.size = 0
        self._trt, self._builder, self._network, self._config = trt, builder, network, config
        self.phases: list[list[Any]] = []  # name, steps, done; the outermost first
        self._monitor = _monitor(trt, self)
        config.progress_monitor = self._monitor

    @property
    def percent(self) -> int:
        """How far it is, by the steps of the outermost phase and those of the phases in it."""
        share, done = 1.0, 0.0
        for _, steps, finished in list(self.phases):
            share /= max(steps, 1)
            done += share * finished
        return min(99, round(100 * done))

    def run(self, file: BinaryIO) -> bool:
        """Build into `file`; whether it was built and written whole."""
        out = _writer(self._trt, self, file)
        try:
            return bool(self._builder.build_serialized_network_to_stream(self._network, self._config, out))
        except (RuntimeError, ValueError, TypeError, MemoryError):  # the log says what it was
            return False


def _writer(trt: Any, build: _Build, file: BinaryIO) -> Any:
    """Writes what the library hands out, and hashes it on its way."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # the library's base class has no types
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except OSError as exc:
                build.trouble, build.cancelled = exc, True
                return 0
            build.digest.update(data)
            build.size += len(data)
            return len(data)

    return Writer()


def _monitor(trt: Any, build: _Build) -> Any:
    """Keeps `build.phases`, and stops a build that was cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library's base class has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            build.phases.append([phase_name, num_steps, 0])

        def step_complete(self, phase_name: str, step: int) -> bool:
            for phase in build.phases:
                if phase[0] == phase_name:
                    phase[2] = step + 1
            return not build.cancelled  # False stops the build

        def phase_finish(self, phase_name: str) -> None:
            build.phases[:] = [phase for phase in build.phases if phase[0] != phase_name]

    return Monitor()


def _write(build: _Build, path: Path, stage: str, report: Report, failure: Callable[[], Exception]) -> tuple[int, str]:
    """Build into `path`, which is there whole or not at all; its size in bytes and sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    built: list[bool] = []
    ended = threading.Event()
    try:
        with scratch.open("wb") as file:

            def work() -> None:
                try:
                    built.append(build.run(file))
                finally:
                    ended.set()

            worker = threading.Thread(target=work, name=stage)
            worker.start()
            try:
                seen = -1
                # not `worker.join(_POLL)`: after a Ctrl-C in it, Python 3.11 takes a running thread for one that ended
                while not ended.wait(_POLL):
                    if build.percent > seen:
                        seen = build.percent
                        report(Event(stage, seen, 100, "%"))
            finally:
                build.cancelled = True  # after Ctrl-C, or a report that raises; a build that ended does not mind
                ended.wait()
                worker.join()
        if build.trouble is not None:
            raise build.trouble
        if built != [True]:
            raise failure()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    report(Event(stage, 100, 100, "%"))
    return build.size, build.digest.hexdigest()
