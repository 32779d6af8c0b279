"""A torch module that holds no weights -> an ONNX graph that holds none either.

The module is traced on fake tensors. Its parameters come out as graph initializers without data, under the state
dict's names; `link.py` points them into a checkpoint. Linears become Gemm(transB=1), so that a runtime can map
their weights as they lie in the checkpoint.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..core.tensors import DType
from .binding import COMPUTED
from .doubles import doubles_to_floats
from .libraries import library_that_failed
from .simplify import simplify
from .spec import ComponentSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

OPSET = 21
PLACEHOLDER = "weights"  # location of an initializer whose checkpoint is not known yet
_PREFIX = "module."  # the wrappers of runtimes/torch hold the library's module under this name


def graph_from_module(spec: ComponentSpec, config: dict[str, Any]) -> ir.Model:
    """Trace `spec`'s module, built from `config`, into an optimized ONNX model without weights.

    Initializers of parameters are external tensors at `PLACEHOLDER`, float32, named as in the module's state dict;
    buffers that no state dict holds are embedded.

    Raises:
        BadInput: the config does not build, or the module cannot be traced.
    """
    import torch

    with quiet():
        module, fake = _weightless(lambda: _built(spec, config))
        example = spec.example(config)
        arguments = []
        with fake:
            for tensor in spec.inputs(config).values():
                shape = [example[d] if isinstance(d, str) else d for d in tensor.shape]
                dtype = torch.int64 if tensor.dtype is DType.INT64 else torch.float32
                arguments.append(torch.ones(shape, dtype=dtype) if shape else torch.ones((), dtype=dtype))
        dynamic: tuple[Any, ...] = tuple(
            {i: torch.export.Dim.AUTO for i, d in enumerate(t.shape) if isinstance(d, str)}
            for t in spec.inputs(config).values()
        )
        if is_variadic(module):  # torch nests what is given to *tensors
            dynamic = (dynamic,)
        try:
            with fake, _linears_as_gemm(), _plain_attention(), torch.no_grad():
                program = torch.export.export(module, tuple(arguments), dynamic_shapes=dynamic, strict=False)
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    optimize=False,
                    opset_version=OPSET,
                    verbose=False,
                    input_names=list(spec.inputs(config)),
                    output_names=list(spec.outputs(config)),
                )
        except Exception as exc:
            if library_that_failed(exc):
                raise
            raise BadInput(
                f"{spec.name} could not be traced: {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}",
                "Report the model's config.json; `vitrify doctor` lists the versions in use.",
            ) from exc
        assert exported is not None
        model: ir.Model = exported.model
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in module.named_buffers()}
    persistent = {name for name in module.state_dict() if not COMPUTED.search(name)}
    simplify(model, parameters | (buffers & persistent), PLACEHOLDER, _PREFIX)
    doubles_to_floats(model)
    _name_dims(model, spec, config)
    _forget_trace(model)
    for value in model.graph.initializers.values():
        if value.name is not None and value.name.startswith(_PREFIX) and value.const_value is None:
            raise BadInput(f"{value.name} came out of the trace without a value.", "Report the model's config.json.")
    model.producer_name, model.producer_version = "vitrify", None
    return model


def is_variadic(module: torch.nn.Module) -> bool:
    """Whether the module takes any number of tensors, as the wrapper of many modules does."""
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(f"{node.domain}:{node.op_type}" for node in model.graph)


def meta_module(spec: ComponentSpec, config: dict[str, Any]) -> torch.nn.Module:
    """The library's own module without weights, for its names and shapes.

    Raises:
        BadInput: the config does not build.
    """
    from accelerate import init_empty_weights

    with quiet(), init_empty_weights(include_buffers=False):
        return _built(spec, config).module  # type: ignore[return-value]


def _built(spec: ComponentSpec, config: dict[str, Any]) -> torch.nn.Module:
    from ..runtimes.torch.modules import build, kind_named

    kind_named(spec.kind).load_class(config)  # what its import raises says nothing about the config
    try:
        return build(spec.kind, config)
    except Exception as exc:  # the libraries raise whatever a config of theirs leads to
        if library_that_failed(exc):  # they also import their parts late
            raise
        first = (str(exc).splitlines() or [""])[0]
        raise BadInput(
            f"{spec.name} cannot be built from its config.json: {type(exc).__name__}: {first}",
            "Check that config.json is the model's own.",
        ) from exc


def _weightless(make: Any) -> tuple[torch.nn.Module, Any]:
    """The module with fake parameters and real non-persistent buffers, and the fake mode that made them."""
    import torch
    from accelerate import init_empty_weights
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with init_empty_weights(include_buffers=False):
        module = make()
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    persistent = {name for name in module.state_dict() if not COMPUTED.search(name)}
    with fake:
        made: dict[int, torch.nn.Parameter] = {}  # a parameter that is tied to another stays the same one
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            owner, leaf = _owner(module, name)
            if id(parameter) not in made:
                value = torch.empty(parameter.shape, dtype=torch.float32)
                made[id(parameter)] = torch.nn.Parameter(value, requires_grad=False)
            owner._parameters[leaf] = made[id(parameter)]
        for name, buffer in list(module.named_buffers()):
            if name in persistent:
                owner, leaf = _owner(module, name)
                owner._buffers[leaf] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return module, fake


def _owner(module: torch.nn.Module, name: str) -> tuple[Any, str]:
    path, _, leaf = name.rpartition(".")
    return (module.get_submodule(path) if path else module), leaf


@contextlib.contextmanager
def _linears_as_gemm() -> Iterator[None]:
    """Linear layers see rank-2 inputs while this lasts, which the ONNX exporter writes as Gemm(transB=1)."""
    import torch

    plain = torch.nn.Linear.forward

    def flat(self: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
        if input.dim() == 2:
            return plain(self, input)
        out = plain(self, input.reshape(-1, self.in_features))
        return out.reshape(*input.shape[:-1], self.out_features)

    torch.nn.Linear.forward = flat  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Linear.forward = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention is softmax(q k^T * scale + mask) v while this lasts: two MatMuls that every runtime knows."""
    import torch
    import torch.nn.functional as F

    library = F.scaled_dot_product_attention

    def plain(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if enable_gqa:  # several queries share a key and a value
            times = query.shape[-3] // key.shape[-3]
            key, value = _repeated(key, times), _repeated(value, times)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.matmul(query * factor, key.transpose(-1, -2))
        if is_causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores + torch.zeros(scores.shape[-2:]).masked_fill(future, float("-inf"))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, float("-inf"))
            scores = scores + attn_mask
        return torch.matmul(torch.softmax(scores, dim=-1), value)

    F.scaled_dot_product_attention = plain
    try:
        yield
    finally:
        F.scaled_dot_product_attention = library


def _repeated(states: torch.Tensor, times: int) -> torch.Tensor:
    """Each head `times` times: [..., heads, tokens, dim] -> [..., heads * times, tokens, dim]."""
    wide = states.unsqueeze(-3).expand(*states.shape[:-2], times, *states.shape[-2:])
    return wide.flatten(-4, -3)


def _name_dims(model: ir.Model, spec: ComponentSpec, config: dict[str, Any]) -> None:
    """Give the graph's inputs and outputs the spec's names for their dynamic dims."""
    import onnx_ir as ir

    specs = {**spec.inputs(config), **spec.outputs(config)}
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = ir.Shape(specs[value.name or ""].shape)


def _forget_trace(model: ir.Model) -> None:
    """Drop the exporter's notes (stack traces with this machine's paths): most of the file, and no two alike."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' chatter: warnings, loggers, and progress printed to the terminal."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
