"""From a component to compiled models, through the cache where that is asked for.

An entry is what the device exported: one for each graph, weights, changed weights, sizes, settings, processor and
version. OpenVINO's own cache folder is not used: it can serve old weights under the same graph.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov

from ..core.artifact import Component, WeightFile, hash_file, identity
from ..core.cache import Cache, key_of
from ..core.device import Device
from ..core.errors import BadArtifact
from .low_rank import Override, fingerprint
from .ov_model import LIBRARY, ports, read, translated
from .ov_winograd import FORM, fewer_products

KIND = "openvino"
_BLOB = "model.blob"
_FORM = 1  # raise the number when entries are made in another way than before
# an entry that is damaged, or that the driver no longer takes: it is made anew
_UNUSABLE: tuple[type[Exception], ...] = (*LIBRARY, OSError, BadArtifact)

Sizes = Mapping[str, tuple[int, ...]]  # of every input, by name


class Count:
    """How many models were compiled in this process, and not taken from the cache."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.value += 1


COMPILED = Count()


class Compiler:
    """One component on one device: compiles it, for any sizes or for given ones.

    cached: how the last model came: "hit", "miss" or "off". compiled: how many were not taken from the cache.
    winograd: how many convolutions of the last that was compiled here compute fewer products.
    fewer: whether convolutions are rewritten for that. usual: sizes of the inputs, by which those of a model for any
        sizes are chosen; None: not known, so that they stay.
    """

    def __init__(
        self,
        core: ov.Core,
        component: Component,
        device: Device,
        target: str,
        settings: Mapping[str, Any],
        overrides: Mapping[str, Override],
        *,
        fewer: bool = False,
        usual: Sizes | None = None,
    ) -> None:
        self.cached, self.compiled, self.winograd = "off", 0, 0
        self._core, self._component, self._device, self._target = core, component, device, target
        self._settings, self._overrides = dict(settings), overrides
        self._fewer, self._usual = fewer, usual
        self._model: ov.Model | None = None
        self._cache: Cache | None = None
        self._key: list[Any] = []

    def use_cache(self) -> None:
        """Take compiled models from the cache, and leave them there.

        Not where the device exports none (a choice among several devices), nor where the cache's bound is too small
        for the weights.

        Raises:
            BadArtifact: the graph or its weights cannot be read.
        """
        if ":" in self._target or "EXPORT_IMPORT" not in self._core.get_property(
            self._target, "OPTIMIZATION_CAPABILITIES"
        ):
            return
        cache, component = Cache(), self._component
        if sum(w.bytes for w in component.weights) > cache.limit:
            return
        try:
            weights = [identity(component, w) for w in component.weights]
            beside = component.graph_path.with_suffix(".bin").relative_to(component.root).as_posix()
            if component.format == "openvino" and beside not in {w.path for w in component.weights}:
                weights.append(identity(component, WeightFile(beside, 0)))
            graph = hash_file(component.graph_path)
        except OSError as exc:
            what = f"{component.graph} or its weights cannot be read: {exc}."
            raise BadArtifact(what, "Copy the whole folder again or export again.") from exc
        # a model is exported as the processor or the driver wants it
        device = [self._core.get_property(self._target, p) for p in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        changed = {name: fingerprint(value) for name, value in self._overrides.items()}
        self._key = [
            _FORM,
            ov.__version__,
            device,
            self._target,
            self._settings,
            graph,
            weights,
            changed,
            [FORM, self._usual] if self._fewer else None,
        ]
        self._cache = cache

    def prepare(self) -> None:
        """Read the graph now, for sizes that will come later: then the changed weights are the caller's again."""
        self._model = self._read()

    def close(self) -> None:
        """Let go of the graph and its weights."""
        self._model = None

    def _read(self) -> ov.Model:
        changed, self._overrides = self._overrides, {}
        return read(self._core, self._component, changed)

    def compile(self, sizes: Sizes | None = None) -> tuple[ov.CompiledModel, Any]:
        """A compiled model, and what must live as long as it does.

        Args:
            sizes: for these only, after `prepare`, as often as there are others; None: once, for any.

        Raises:
            BadArtifact, BadInput: what `read` refuses.
            BadInput: the graph does not take these sizes.
            DeviceError, RuntimeFailure: it does not compile.
        """
        key = key_of([*self._key, sizes]) if self._cache else ""
        found = self._imported(key) if self._cache else None
        if found is not None:
            self._overrides = {}
            self.cached = "hit"
            return found
        model = self._model or self._read()
        if sizes is not None:
            with translated(self._component):
                model = model.clone()
                model.reshape({name: ov.PartialShape(list(shape)) for name, shape in sizes.items()})
        with translated(self._component, self._device):
            if self._fewer and (sizes is not None or self._usual is not None):
                self.winograd = fewer_products(model, None if sizes is not None else self._usual)
            compiled = self._core.compile_model(model, self._target, self._settings)
            self.compiled += 1
            COMPILED.add()
        if self._cache is not None:
            self.cached = "miss"
            self._export(compiled, key)
        return compiled, None

    def _imported(self, key: str) -> tuple[ov.CompiledModel, Any] | None:
        assert self._cache is not None
        entry = self._cache.get(KIND, key)
        if entry is None:
            return None
        try:
            # mapped, not read: "c" because OpenVINO takes no array that it may not write to, though it writes nothing
            mapped = np.memmap(entry / _BLOB, dtype=np.uint8, mode="c")
            # with the settings: what was exported in float32 is else computed in what the processor likes best
            compiled = self._core.import_model(ov.Tensor(mapped, shared_memory=True), self._target, self._settings)
            ports(self._component, compiled)
        except _UNUSABLE:
            return None
        return compiled, mapped

    def _export(self, compiled: ov.CompiledModel, key: str) -> None:
        assert self._cache is not None
        with translated(self._component, self._device):
            blob = compiled.export_model()
        if blob.getbuffer().nbytes <= self._cache.limit:  # else it would be dropped at once, after all the others
            with self._cache.put(KIND, key) as scratch:
                (scratch / _BLOB).write_bytes(blob.getbuffer())
