"""torch's own export of a UNet, with its real weights: what the weightless export is measured beside.

Run as `python -m vitrify.bench.dynamo_export UNET_FOLDER FOLDER`; writes FOLDER/model.onnx and its weights. Nothing of
vitrify takes part: it is what somebody would write who follows torch's documentation of `torch.onnx.export`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m vitrify.bench.dynamo_export UNET_FOLDER FOLDER", file=sys.stderr)
        return 2
    import diffusers
    import torch

    source, target = Path(arguments[0]), Path(arguments[1])
    target.mkdir(parents=True)
    start = time.perf_counter()
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(source), local_files_only=True).eval()
    loaded = time.perf_counter()
    # sizes above 1 and unlike each other, else the tracer takes them for constants
    example = {
        "sample": torch.zeros(3, unet.config.in_channels, 24, 40),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.zeros(3, 77, unet.config.cross_attention_dim),
        "return_dict": False,
    }
    auto = torch.export.Dim.AUTO
    dynamic = {
        "sample": {0: auto, 2: auto, 3: auto},
        "timestep": None,
        "encoder_hidden_states": {0: auto, 1: auto},
        "return_dict": None,
    }
    with torch.no_grad():
        torch.onnx.export(
            unet,
            (),
            str(target / "model.onnx"),
            kwargs=example,
            dynamic_shapes=dynamic,
            dynamo=True,
            external_data=True,
            output_names=["out_sample"],
        )
    print("VITRIFY_BENCH " + json.dumps({"load_s": loaded - start, "export_s": time.perf_counter() - loaded}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
