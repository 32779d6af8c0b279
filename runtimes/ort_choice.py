"""Which execution provider opens a component, what it computes in, and whether it really runs all of it."""

from __future__ import annotations

import onnxruntime as ort

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import DeviceError, UsageError
from .base import Options
from .ort_builds import missing, version
from .ort_errors import DOCTOR
from .ort_probe import how_to_get, kinds_here, lists
from .ort_providers import CPU, PROVIDERS, Provider, computes_in, named, of_kind

# Shapes are computed on the CPU by design: these nodes read and write a few whole numbers, and their kernels for a GPU
# would wait for it (fallback_cpu_capability.cc). With session.disable_cpu_ep_fallback no graph with a Shape would open.
_OF_SHAPES = frozenset(
    (
        *("Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze"),
        *(
            "Reshape",
            "Expand",
            "Range",
            "Cast",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Mod",
            "Neg",
            "Floor",
            "Ceil",
            "Min",
            "Max",
        ),
        *("Equal", "Greater", "Less", "And", "Or", "Not", "Where", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"),
        *("MemcpyFromHost", "MemcpyToHost"),
    )
)
_TELLS = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # ONNX Runtime 1.24 and newer


def provider_of(device: Device, options: Options) -> Provider:
    """The provider that was asked for, or the device's first one here."""
    asked = None if options.provider is None else named(options.provider)
    if options.provider is not None and asked is None:
        raise UsageError(
            f"There is no execution provider {options.provider!r}.",
            f"Providers are {', '.join(row.name for row in PROVIDERS)}.",
        )
    could, here = of_kind(device.kind), lists(device)
    if asked is not None and here and asked not in could:
        raise UsageError(
            f"{asked.name} does not run {device.kind}; it runs {' and '.join(asked.kinds)}.",
            f"For {device.kind} give provider={' or '.join(row.name for row in could)}, or leave it out.",
        )
    if (device.kind == "cpu" and device.index) or not here or (asked is not None and asked not in here):
        raise _not_here(device, asked, [row for row in could if row not in here])
    row = asked or here[0]
    if options.cuda_graphs and not row.graphs:
        graphs = [other.name for other in PROVIDERS if other.graphs]
        raise UsageError(
            f"{row.name} records no CUDA graphs.", f"Leave cuda_graphs out; {', '.join(graphs)} have them."
        )
    return row


def _not_here(device: Device, asked: Provider | None, absent: list[Provider]) -> DeviceError:
    """absent: the device's providers that are not listed here; none where its number is what is not there."""
    have, by, why, fix = kinds_here(), "", "", ""
    wanted = asked or (absent[0] if absent else None)
    if asked is not None:
        by = f" by {asked.title}"
    if wanted is not None and wanted in absent:
        if not version(wanted):
            fix = how_to_get(wanted)
        else:  # it is installed
            told = missing(wanted)
            why, fix = f": {told}" if told else "", f"It needs {wanted.needs}." if wanted.needs else ""
    return DeviceError(
        f"ONNX Runtime {ort.__version__} cannot run on {device}{by} here{why}; it has {', '.join(have)}.",
        fix or f"Give --device {have[0]}.",
    )


def precision_of(component: Component, row: Provider, options: Options) -> str:
    """What the session computes in, where that is what was asked for.

    Raises:
        UsageError: it is not.
        DeviceError: the provider takes TF32 for float32, and has no leave to do so.
    """
    said = str(component.precision.get("activations", "float32"))
    computed = computes_in(row, said)
    if options.precision in (None, said) and computed == "tf32":
        raise DeviceError(
            f"{row.name} computes float32 in TF32, which has 10 bits of mantissa, and has no option against it.",
            "Set NVIDIA_TF32_OVERRIDE=0 before the process starts, give -O precision=tf32, or leave the provider out.",
        )
    if options.precision not in (None, computed):
        raise UsageError(
            f"ONNX Runtime computes what the graph says, {computed}, not {options.precision}.",
            "Leave the precision out, or compile the artifact in that precision.",
        )
    return computed


def no_fallback() -> tuple[str, str]:
    """The entry of a session's settings that lets `check_placement` see its nodes, or else allows none the CPU."""
    return ("session.record_ep_graph_assignment_info" if _TELLS else "session.disable_cpu_ep_fallback"), "1"


def check_placement(component: Component, device: Device, row: Provider, session: ort.InferenceSession) -> str:
    """The providers that the nodes are placed on, as the library tells them.

    Raises:
        DeviceError: it placed them elsewhere, in whole or in part.
    """
    ran = session.get_providers()
    if ran[0] != row.title:
        why = missing(row)
        raise DeviceError(
            f"{device} was asked for, ONNX Runtime placed {component.name} on {ran[0]}" + (f": {why}." if why else "."),
            f"It needs {row.needs}, or give --device cpu." if row.needs else DOCTOR,
        )
    if row is CPU or not _TELLS:
        return str(ran[0])
    nodes: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    left = sorted(nodes.pop(CPU.title, set()) - _OF_SHAPES)
    if left or row.title not in nodes:
        what = f"{', '.join(left)} of {component.name}" if left else f"all of {component.name}"
        raise DeviceError(
            f"{row.title} leaves {what} to the CPU: it has no kernel for it.",
            "Give another provider or runtime, an artifact in another precision, or --device cpu.",
        )
    return ", ".join([row.title, *(name for name in nodes if name != row.title)])
