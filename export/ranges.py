"""How large the values of a graph become over recorded inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadInput, RuntimeFailure
from ..core.progress import Event, Report, silent
from ..core.registry import load_runtime
from ..core.tensors import Array

if TYPE_CHECKING:
    import onnx


def largest(
    model: onnx.ModelProto,
    names: Sequence[str],
    samples: Sequence[dict[str, Array]],
    folder: Path,
    report: Report = silent,
) -> dict[str, float]:
    """The largest absolute value of each named float32 value, averaged over the samples.

    One number a value leaves the graph, so that memory is that of a run.

    Args:
        folder: where the model's external data lies; the graph is written there.

    Raises:
        BadInput: a value is NaN or infinite.
        MissingDependency: the `onnx` extra is not installed.
        RuntimeFailure: the graph does not run, for lack of memory or other reasons.
    """
    if not names:
        return {}
    load_runtime("onnx")  # says what is missing
    import onnx
    import onnxruntime as ort

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for number, name in enumerate(names):
        size, peak = f"vitrify.size.{number}", f"vitrify.peak.{number}"
        watched.graph.node.append(onnx.helper.make_node("Abs", [name], [size]))
        watched.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [peak], keepdims=0))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, []))
    path = folder / "ranges.onnx"
    path.write_bytes(watched.SerializeToString())
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    peaks = np.zeros(len(names))
    try:
        session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        for number, sample in enumerate(samples):
            report(Event("measure ranges", number, len(samples), "samples"))
            peaks += np.array(session.run(None, sample), np.float64)
    except Exception as exc:  # its exceptions share no base
        raise RuntimeFailure(f"The ranges of the graph cannot be measured: {exc}.", "Free some memory.") from exc
    path.unlink()
    if not np.isfinite(peaks).all():
        bad = names[int(np.flatnonzero(~np.isfinite(peaks))[0])]
        raise BadInput(f"{bad} becomes NaN or infinite on a calibration input.", "Verify the artifact.")
    return dict(zip(names, (peaks / len(samples)).tolist(), strict=True))
