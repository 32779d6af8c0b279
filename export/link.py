"""Point a graph's weights into a checkpoint: no byte of them is read, and none is written twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.artifact import WeightFile
from ..core.dtypes import FLOATS, ONNX
from ..core.errors import BadInput
from ..core.publish import link_or_copy
from ..core.safetensors_header import TensorEntry

if TYPE_CHECKING:
    import onnx_ir as ir


def link_weights(
    model: ir.Model, entries: Mapping[str, TensorEntry], root: Path, folder: str
) -> tuple[list[WeightFile], list[str]]:
    """Give each of the graph's parameters its bytes in the checkpoint, whose files are linked beside the graph.

    A tensor stored in another float type than the graph computes in gets a Cast. A tensor stored with sizes of 1
    more or less is declared with the graph's dims.

    Args:
        model: changed in place; its parameters are the external initializers.
        entries: parameter name -> where its bytes lie.
        root, folder: the artifact's folder and the component's folder in it.

    Returns:
        The files of weights, relative to `root` (their hashes are left to the weights proof), and the names of
        those that had to be copied because the disk cannot link them.

    Raises:
        BadInput: a parameter has no bytes, another shape, or a dtype that the graph's cannot be cast from.
    """
    import onnx_ir as ir

    graph = model.graph
    files: dict[Path, str] = {}
    for name, value in list(graph.initializers.items()):
        if not isinstance(value.const_value, ir.ExternalTensor):
            continue
        entry = entries.get(name)
        shape = tuple(int(d) for d in value.const_value.shape.numpy())
        if entry is None:
            raise BadInput(f"The checkpoint has no tensor for {name}.", "Download the model again, whole.")
        wanted = value.const_value.dtype
        if not _same_layout(entry.shape, shape) or not _castable(entry.dtype, wanted.name):
            raise BadInput(
                f"{entry.name} in {entry.file} is {entry.dtype} {list(entry.shape)}; the graph wants {list(shape)}.",
                "Export a float32, float16 or bfloat16 checkpoint of this architecture.",
            )
        stored = ir.DataType[ONNX[entry.dtype]]
        target = files.setdefault(entry.file, _target(entry.file, files))
        value.const_value = ir.ExternalTensor(
            location=target, offset=entry.offset, length=entry.length, dtype=stored, shape=ir.Shape(shape), name=name
        )
        value.shape = ir.Shape(shape)
        if stored != wanted:
            cast_stored(graph, value, stored, wanted)
    written, copied = [], []
    for source, target in files.items():
        path = f"{folder}/{target}" if folder else target
        if not link_or_copy(source, root / path):
            copied.append(path)
        written.append(WeightFile(path, (root / path).stat().st_size))
    return written, copied


def _target(file: Path, files: Mapping[Path, str]) -> str:
    if file.name not in files.values():
        return file.name
    return f"{len(files)}-{file.name}"


def _same_layout(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether one's bytes are the other's: sizes of 1 move no element."""
    return [d for d in stored if d != 1] == [d for d in wanted if d != 1]


def _castable(stored: str, wanted: str) -> bool:
    """Floats become other floats; a whole number for a float, or a float for one, is another model's tensor."""
    return ONNX.get(stored) == wanted or (stored in FLOATS and wanted != "INT64")


def cast_stored(graph: ir.Graph, value: ir.Value, stored: ir.DataType, wanted: ir.DataType) -> None:
    """Store `value` as `stored`; its users get it cast to `wanted`."""
    import onnx_ir as ir

    users = list(value.uses())
    node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{value.name}.cast")
    out = node.outputs[0]
    out.name, out.shape, out.dtype = f"{value.name}.{wanted.name.lower()}", value.shape, wanted
    for user, index in users:
        user.replace_input_with(index, out)
    value.dtype = stored
    graph.insert_before(graph[0], node)
