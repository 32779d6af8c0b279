"""less: whole pictures in 20 steps, beside other tools: what it is worth to compute less, or to hold less.

All from the same model, noise and schedule, in one run. It needs the environments that `make bench-peers` builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .bench_peers import COLUMNS, Picture, cases_of, prepare_for
from .peers.table import EAGER, FLOAT32, FORMATS, QUANTIZED, Peer
from .suite import Bench, Comparison

PICTURE = Picture("less", 20)
WHOLE, INT8 = FORMATS["vitrify-fp32"], FORMATS["vitrify-int8-static"]


def beside(peers: Sequence[Peer]) -> list[Peer]:
    """Those that are beside ours; of the slow ones one picture is as good as two."""
    others = [one for one in peers if one.tool not in ("ours", "diffusers_compile")]
    return [replace(one, draws=1) if one.tool == "sdcpp" else one for one in others]


ON = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
EXACT = {
    one: Peer(f"vitrify, exact, on {name}", "ours", f"{one} preset=exact", None, WHOLE) for one, name in ON.items()
}
# what it does is caching steps, of which every second is whole
FAST = {one: Peer(f"vitrify, fast, on {name}", "ours", f"{one} preset=fast", None, WHOLE) for one, name in ON.items()}
THIRD = {
    one: Peer(f"vitrify, every third step whole, on {name}", "ours", f"{one} step_cache=3", None, WHOLE)
    for one, name in ON.items()
}
IN_FLOAT32 = [
    *beside(FLOAT32),
    *EXACT.values(),
    *FAST.values(),
    *THIRD.values(),
    Peer("vitrify, small", "ours", "onnx preset=small", None, WHOLE),
]
IN_8_BITS = [
    *beside(QUANTIZED),
    Peer("vitrify, int8-static, fast, on OpenVINO", "ours", "openvino preset=fast", None, INT8),
    Peer("vitrify, int8-static, fast, on ONNX Runtime", "ours", "onnx preset=fast", None, INT8),
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
