"""An ONNX component -> a TensorRT or TensorRT-RTX plan.

TensorRT-RTX needs no GPU for most of it: the plan holds the optimized graph with its weights, and the kernels for one
GPU are made where it runs. TensorRT times kernels while it builds, so it builds where the plan will run.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.artifact import NOT_RUN, Component, WeightFile, hash_file
from ..core.errors import BadInput, DeviceError, RuntimeFailure
from ..core.progress import Event, Report, silent
from ..core.publish import disk_errors
from ..core.registry import load_runtime
from ..runtimes.cuda import find_gpus
from ..runtimes.plan_weights import PlanWeight, weights_json
from ..runtimes.trt_engine import made, message_log, read_header
from .plan_building import Build, write_plan
from .plan_network import check_network, described, parse, profile_of
from .plan_options import PlanOptions, configure, target_of
from .plan_timing import keep_timings, timing_key, use_timings
from .plan_weights import keep_files, mark_refittable, outside_weights

_HALVES = ("float16", "bfloat16")


def build_plan(
    component: Component,
    root: Path,
    *,
    flavour: str = "tensorrt-rtx",
    options: PlanOptions | None = None,
    precision: str | None = None,
    compute_capability: str | None = None,
    report: Report = silent,
) -> Component:
    """Write <root>/<name>/model.plan, and give the component that describes it.

    Args:
        component: of the format onnx; its `shapes` say which sizes the plan can run.
        options: see `PlanOptions`. precision, compute_capability: two of them, by name.

    Returns:
        A component whose first file of weights is the plan itself, so that loading the artifact checks its size and
        hash. The others are the model's own, of a plan that takes weights from them.

    Raises:
        BadInput: the library cannot parse or build the graph; says which node.
        BadArtifact: the graph is missing.
        UsageError: a choice that does not exist, or that the library lacks.
        DeviceError: this build needs a GPU, and there is none.
        MissingDependency: the library, or for 16 bits the `export` extra, is not installed.
        DiskError: the disk is full or read-only.
    """
    options = (options or PlanOptions()).named(precision, compute_capability)
    options.check(flavour)
    if component.format != "onnx":
        raise BadInput(f"{component.name} is {component.format}; plans are made from onnx.", "Compile its source.")
    runtime = load_runtime(flavour)
    trt, title = runtime.library, f"{runtime.title} {runtime.version}"
    target = target_of(trt, flavour, options, component.precision.get("weights") == "float8e4m3")
    computed = _computed(component, options, report)
    outside = {} if options.keeps == "inside" else outside_weights(component, options.keeps)
    log = message_log(trt)
    builder = made(trt.Builder, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    inputs = outside if options.apart else {}
    parse(parser, component, computed, title, inputs)
    check_network(network, component, inputs)
    if options.refit or options.strip:
        mark_refittable(trt, network, outside, component.graph)
    config = builder.create_builder_config()
    configure(trt, config, flavour, options, target)
    profile = profile_of(builder, component)
    config.add_optimization_profile(profile)
    engine = described(trt, network, config, profile, component)
    timings = _timings(flavour, options, runtime.version)
    if timings:
        use_timings(config, timings)
    path = root / component.name / "model.plan"
    build = Build(trt, builder, network, config)
    with disk_errors(root):
        size, digest = write_plan(
            build, path, f"build {component.name}", report, lambda: _failed(component, title, log, options)
        )
        if timings:
            keep_timings(config, timings)
        files = keep_files(component, root) if outside else ()
    del parser  # it owns the weights that the network points to
    relative = f"{component.name}/model.plan"
    header = read_header(trt, path)
    engine |= {"bytes": size, "header": header, "refittable": len(outside) if not options.apart else 0}
    return replace(
        component,
        format=flavour,
        graph=relative,
        weights=(WeightFile(relative, size, digest), *files),
        precision=_precision(component, computed),
        requires={
            "runtime": f"{flavour}=={runtime.version}",
            # NVIDIA calls plans of TensorRT-RTX portable between Linux and Windows, those of TensorRT bound to one
            "os": platform.system() if flavour == "tensorrt" else None,
            "compute_capability": target,
        },
        proof={"graph": NOT_RUN, "weights": NOT_RUN, "numeric": NOT_RUN},
        details=component.details | {"source": _source(component), "engine": engine} | _plan(options, outside),
        root=root,
    )


def _computed(component: Component, options: PlanOptions, report: Report) -> str:
    """What this component's floats are computed in."""
    if options.precision == "float16" and str(component.details.get("kind", component.name)).startswith("vae"):
        report(Event(f"build {component.name}", note=f"{component.name} stays in float32: in float16 it is black."))
        return "float32"
    return options.precision


def _timings(flavour: str, options: PlanOptions, version: str) -> str:
    """The key of what was timed; "" where nothing is."""
    if flavour != "tensorrt" or options.timing_cache is False:
        return ""
    return timing_key(version, find_gpus()[0])


def _source(component: Component) -> dict[str, Any]:
    return {
        "format": component.format,
        "graph": hash_file(component.graph_path),
        "weights": [w.sha256 for w in component.weights],
        "proof": dict(component.proof),
    }


def _plan(options: PlanOptions, outside: dict[str, PlanWeight]) -> dict[str, Any]:
    """How it was built, for the command that builds it again; and the weights that lie in files."""
    told: dict[str, Any] = {"arguments": options.arguments()}
    return told | ({"outside": weights_json(options.keeps, outside)} if outside else {})


def _precision(component: Component, computed: str) -> dict[str, Any]:
    """float32 is what a plan without a recipe holds, whatever the weights were stored in before."""
    plain = component.precision.get("recipe") == "fp32"
    if computed in _HALVES:
        said = {"recipe": {"float16": "fp16", "bfloat16": "bf16"}[computed], "weights": computed} if plain else {}
        activations = str(component.precision.get("activations", "float32")).replace("float32", computed)
        return component.precision | said | {"activations": activations}
    return component.precision | ({"weights": "float32"} if plain else {})


def _failed(component: Component, title: str, log: Any, options: PlanOptions) -> Exception:
    said = log.first()
    if (options.refit or options.strip) and ("CUDA_SUCCESS" in said or "accelerator list" in said):
        # it compiles what a refit will do to the weights, and loads that into a GPU, while it builds
        return DeviceError(
            f"{title} makes refittable plans on an NVIDIA GPU alone, which {component.name} was built without: {said}",
            "Build it where there is such a GPU, or give --apart instead, which needs none.",
        )
    if "memory" in said.lower() or "alloc" in said.lower():
        return RuntimeFailure(f"{title} ran out of memory while it built {component.name}: {said}", "Use more memory.")
    return BadInput(
        f"{title} does not build {component.graph}: {said}",
        "Compile it in another precision, for newer GPUs, or for another runtime.",
    )
