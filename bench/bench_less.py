"""less: whole pictures in 20 steps, beside other tools: what it is worth to compute less, or to hold less.

All from the same model, noise and schedule, in one run. It needs the environments that `make bench-peers` builds.
"""

from __future__ import annotations

from dataclasses import replace

from .bench_peers import COLUMNS, Picture, cases_of, prepare_for
from .peers.table import EAGER, FLOAT32, FORMATS, QUANTIZED, Peer
from .suite import Bench, Comparison

PICTURE = Picture("less", 20)
WHOLE, INT8 = FORMATS["vitrify-fp32"], FORMATS["vitrify-int8-static"]
# those that are beside ours; of the slow ones one picture is as good as two
PEERS = [
    replace(one, draws=1) if one.tool == "sdcpp" else one
    for one in (*FLOAT32, *QUANTIZED)
    if one.tool not in ("ours", "diffusers_compile")
]
ON = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
EXACT = {
    one: Peer(f"vitrify, exact, on {name}", "ours", f"{one} preset=exact", None, WHOLE) for one, name in ON.items()
}
CACHED = {
    one: Peer(f"step caching alone, on {name}", "ours", f"{one} step_cache=2", None, WHOLE) for one, name in ON.items()
}
FAST = [Peer(f"vitrify, fast, on {name}", "ours", f"{one} preset=fast", None, WHOLE) for one, name in ON.items()]
OURS = [
    *EXACT.values(),
    *CACHED.values(),
    *FAST,
    Peer("vitrify, small", "ours", "onnx preset=small", None, WHOLE),
    Peer("vitrify, int8-static, fast, small decoder", "ours", "openvino preset=fast decoder=preview", None, INT8),
    Peer("vitrify, int8-static, small", "ours", "onnx preset=small", None, INT8),
]
LESS = Bench(
    "less",
    lambda work: cases_of([*PEERS, *OURS], PICTURE, work),
    lambda work: prepare_for(PICTURE, work),
    (
        Comparison(PICTURE.title, EAGER.name),
        *(
            Comparison(f"step caching on {name}", EXACT[one].name, (EXACT[one].name, CACHED[one].name))
            for one, name in ON.items()
        ),
    ),
    columns=COLUMNS,
)
