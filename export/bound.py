"""Which tensor of a checkpoint is which parameter; remembered, so that a second model needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..core.cache import Cache, key_of
from ..core.safetensors_header import TensorEntry, read_header
from .libraries import version
from .spec import ComponentSpec, Config

KIND = "bindings"
SIDE_FILE = "converted.safetensors"


def entries_for(
    spec: ComponentSpec, config: Config, graph_key: str, checkpoint: Mapping[str, TensorEntry], cache: Cache, side: Path
) -> dict[str, TensorEntry]:
    """Parameter name -> its bytes, in the checkpoint or, where they must be computed, in a file that is written here.

    Args:
        side: folder for `SIDE_FILE`; made only when it is needed.

    Raises:
        BadInput: a tensor without an owner, a parameter without a tensor, a wrong shape.
    """
    layout = sorted((e.name, e.dtype, e.shape) for e in checkpoint.values())
    key = key_of([graph_key, spec.kind, layout, {n: version(n) for n in ("torch", spec.library)}])
    found = cache.get(KIND, key)
    if found is not None:
        known = json.loads((found / "names.json").read_text())
        return {name: checkpoint[source] for name, source in known.items()}
    from .graph import meta_module
    from .names import bind_module

    bindings = bind_module(meta_module(spec, config), checkpoint)
    entries = {n: e for n, e in bindings.linked.items() if not n.startswith(spec.unused)}
    wanted = {n: t for n, t in bindings.transforms.items() if not n.startswith(spec.unused)}
    if wanted:
        from safetensors.torch import save_file

        side.mkdir(parents=True, exist_ok=True)
        # one tensor after another would need one file each; what is converted is a small part of a model
        save_file({name: transform.compute() for name, transform in wanted.items()}, str(side / SIDE_FILE))
        entries |= read_header(side / SIDE_FILE)
    elif not bindings.compared:
        with cache.put(KIND, key) as scratch:
            (scratch / "names.json").write_text(json.dumps({n: e.name for n, e in entries.items()}))
    return entries
