"""The optimizer's passes that a traced graph goes through: which rules there are, and a constant that is almost 0."""

from __future__ import annotations

import numpy as np
import pytest

from vitrify.export.simplify import RULES, simplify

ir = pytest.importorskip("onnx_ir", reason="needs the extra export")
rules = pytest.importorskip("onnxscript.rewriter.rules.common", reason="needs the extra export")
NEW = {"materialize_reshape_shape_rule"}  # not in every onnxscript that is supported


def test_every_rule_is_the_librarys() -> None:
    assert {name for name in RULES if not hasattr(rules, name)} <= NEW


def test_a_rule_that_an_older_library_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEW:
        monkeypatch.delattr(rules, name, raising=False)
    model = added(1e-15)
    simplify(model, set(), "weights", "")
    assert [node.op_type for node in model.graph] == ["Add"]


@pytest.mark.parametrize(("number", "kept"), [(1e-15, True), (0.0, False)])
def test_what_is_almost_0_stays_and_0_goes(number: float, kept: bool) -> None:
    model = added(number)
    simplify(model, set(), "weights", "")
    assert ("Add" in [node.op_type for node in model.graph]) == kept
    assert [value.name for value in model.graph.inputs] == ["x"]


def added(number: float) -> ir.Model:
    """A graph that adds a constant to its input."""
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    constant = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(number))})
    total = ir.node("Add", [x, constant.outputs[0]])
    for node, name in ((constant, "c"), (total, "y")):
        out = node.outputs[0]
        out.name, out.type = name, ir.TensorType(ir.DataType.FLOAT)
    total.outputs[0].shape = ir.Shape([2])
    graph = ir.Graph([x], [total.outputs[0]], nodes=[constant, total], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)
