"""less: whole pictures in 20 steps, beside other tools: what it is worth to compute less, or to hold less.

All from the same model, noise and schedule, in one run. It needs the environments that `make bench-peers` builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .bench_peers import COLUMNS, Picture, cases_of, prepare_for
from .peers.table import EAGER, FLOAT32, FORMATS, QUANTIZED, Format, Peer
from .suite import Bench, Comparison

PICTURE = Picture("less", 20)
WHOLE, INT8 = FORMATS["vitrify-fp32"], FORMATS["vitrify-int8-static"]


def beside(peers: Sequence[Peer]) -> list[Peer]:
    """Those that are beside ours; of the slow ones one picture is as good as two."""
    others = [one for one in peers if one.tool not in ("ours", "diffusers_compile")]
    return [replace(one, draws=1) if one.tool == "sdcpp" else one for one in others]


ON = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def on_each(what: str, words: str, made: Format = WHOLE) -> dict[str, Peer]:
    """A row on each runtime. words: as `generate` takes them."""
    return {one: Peer(f"vitrify, {what}, on {name}", "ours", f"{one} {words}", None, made) for one, name in ON.items()}


EXACT = on_each("exact", "preset=exact")
FAST = on_each("fast", "preset=fast")  # caches steps, of which every second is whole, and does nothing else
THIRD = on_each("every third step whole", "step_cache=3")
IN_FLOAT32 = [
    *beside(FLOAT32),
    *EXACT.values(),
    *FAST.values(),
    *THIRD.values(),
    Peer("vitrify, small", "ours", "onnx preset=small", None, WHOLE),
]
IN_8_BITS = [
    *beside(QUANTIZED),
    *on_each("int8-static, fast", "preset=fast", INT8).values(),
    Peer("vitrify, int8-static, small", "ours", "onnx preset=small", None, INT8),
]
LESS = Bench(
    "less",
    lambda work: cases_of([*IN_FLOAT32, *IN_8_BITS], PICTURE, work),
    lambda work: prepare_for(PICTURE, work),
    (
        Comparison(PICTURE.title, EAGER.name),
        *(
            Comparison(f"step caching on {name}", EXACT[one].name, (EXACT[one].name, FAST[one].name, THIRD[one].name))
            for one, name in ON.items()
        ),
    ),
    columns=COLUMNS,
)
