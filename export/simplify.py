"""A traced graph -> the same one with its constants folded, and without what does nothing.

These are onnxscript's own passes, in its own order, less the rules that fuse batch norms and integer convolutions, and
less one more: of two slices it makes one split, and looks at every other node for each node to find them. In a graph of
ten thousand nodes that takes longer than to trace it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_TINY = 1e-7  # onnxscript takes what is within 1e-8 of 0 for it
_ROUNDS = 2
# of onnxscript.rewriter.rules.common; before 0.7.1 it had no materialize_reshape_shape_rule
RULES = (
    "mul_by_1_rule", "add_0_rule", "sub_0_rule", "div_by_1_rule", "dropout_zero_rule", "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule", "one_reshape_matmul_reshape_rule", "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule", "collapse_slice_rule", "collapse_slice2_rule",
    "materialize_reshape_shape_rule", "min_min_rule", "max_max_rule", "min_max_rule", "max_min_rule",
    "successive_clip_relu_rule", "successive_relu_clip_rule", "successive_relu_rule", "successive_clip_rule",
    "cast_cast_rule", "no_op_cast_rule", "no_op_expand_rule", "flatten_to_reshape_rule", "reshape_reshape_rule",
    "no_op_transpose_rule", "transpose_transpose_rule", "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule", "no_op_static_scatter_nd_rule", "normalize_pad_format_conv_rule",
    "fuse_pad_into_conv_rule", "remove_optional_bias_from_conv_rule", "remove_optional_bias_from_gemm_rule",
)  # fmt: skip


def simplify(model: ir.Model, weights: set[str], placeholder: str, prefix: str) -> None:
    """Fold and simplify around the weights, which are graph inputs while the passes run: they never see data.

    Args:
        weights: names of initializers that become external tensors, float32 without data, at the location
            `placeholder`; those that nothing uses are left out.
        prefix: what their names lose at the front.
    """
    import onnx_ir as ir

    graph = model.graph
    tiny = _hide_tiny(graph)
    held = []
    for name in [n for n in graph.initializers if n in weights]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
        held.append(value)
    _passes()(model)
    keep = [v for v in graph.inputs if v not in held and v not in tiny]
    del graph.inputs[:]
    graph.inputs.extend(keep)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and v not in graph.outputs]:
        graph.initializers.pop(name)
    for value in held:
        if not value.uses():
            continue
        name = (value.name or "").removeprefix(prefix)
        value.name = name
        assert value.shape is not None
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            location=placeholder, offset=0, length=0, dtype=value.dtype, shape=value.shape, name=name
        )
        graph.initializers[name] = value
    for value, tensor in tiny.items():
        if value.uses():
            value.const_value = tensor
            graph.initializers[str(value.name)] = value


def _hide_tiny(graph: ir.Graph) -> dict[ir.Value, ir.TensorProtocol]:
    """Make graph inputs of the constants that the optimizer would take for 0 and drop from their sums.

    They keep a division from being one by 0, as the 1e-15 of linear attention does.
    """
    import onnx_ir as ir

    hidden: dict[ir.Value, ir.TensorProtocol] = {}
    for node in [n for n in graph if n.op_type == "Constant"]:
        old = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(old)
        if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
            continue
        if 0 < abs(float(tensor.numpy().item())) <= _TINY:
            value = ir.Value(
                name=f"{old.name}_tiny", shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
            )
            ir.convenience.replace_all_uses_with(old, value)
            graph.remove(node)
            graph.inputs.append(value)
            hidden[value] = tensor
    return hidden


def _passes() -> ir.passes.Sequential:
    import onnx_ir as ir
    import onnx_ir.passes.common as common
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    class Fold(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            folded: ir.passes.PassResult = optimizer.fold_constants_ir(model, onnx_shape_inference=True)
            return folded

    chosen = [getattr(rules, name) for name in RULES if hasattr(rules, name)]
    unused = (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass())
    rounds = ir.passes.PassManager([Fold(), rewriter.RewritePass(chosen), *unused], steps=_ROUNDS, early_stop=True)
    return ir.passes.Sequential(
        common.InlinePass(),
        rounds,
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )


def leave_out_unused(model: ir.Model) -> None:
    """Take out whatever nothing uses, inputs and initializers too, as where a graph was cut."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    graph = model.graph
    for value in [v for v in graph.inputs if not v.uses()]:
        graph.inputs.remove(value)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        graph.initializers.pop(name)
