"""Sources that are no model, damaged, or of a kind that is not supported: what `export` says; nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Refuses = Callable[..., Any]


def test_a_missing_folder(at: Any, refuses: Refuses) -> None:
    refuses(["export", at.tmp / "nothing", "-o", at.out], 2, "bad_input", "does not exist", "folder")


def test_a_folder_that_is_no_model(at: Any, refuses: Refuses) -> None:
    (at.tmp / "empty").mkdir()
    refuses(
        ["export", at.tmp / "empty", "-o", at.out],
        2,
        "bad_input",
        "neither model_index.json nor config.json",
        "save_pretrained",
    )


def test_a_file_instead_of_a_folder(at: Any, refuses: Refuses) -> None:
    refuses(["export", at.picture, "-o", at.out], 2, "bad_input", "is not a safetensors file")


def test_a_truncated_checkpoint(at: Any, refuses: Refuses) -> None:
    file = at.copy(at.emotions) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    refuses(["export", file.parent, "-o", at.out], 2, "bad_input", "model.safetensors")


def test_a_checkpoint_that_ends_within_its_header(at: Any, refuses: Refuses) -> None:
    file = at.copy(at.emotions) / "model.safetensors"
    os.truncate(file, 100)
    refuses(["export", file.parent, "-o", at.out], 2, "bad_input", "model.safetensors")


def test_a_header_that_lies_about_offsets(at: Any, refuses: Refuses) -> None:
    file = at.copy(at.emotions) / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [n for n in header if n != "__metadata__"]
    first, second = sorted(names, key=lambda n: header[n]["data_offsets"])[:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [header[first]["data_offsets"][0], header[first]["data_offsets"][0] + size]
    packed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + length :])
    refuses(["export", file.parent, "-o", at.out], 2, "bad_input", "model.safetensors")


def test_a_pickle_is_all_there_is(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.emotions)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "pickle", "safetensors")


def test_an_unsupported_pipeline(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.diffusion)
    at.edit(folder / "model_index.json", lambda d: d.update(_class_name="WanPipeline"))
    refuses(
        ["export", folder, "-o", at.out],
        2,
        "bad_input",
        "WanPipeline, which is not supported",
        "StableDiffusionPipeline",
    )


def test_an_unsupported_classifier(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.emotions)
    at.edit(folder / "config.json", lambda d: d.update(architectures=["BertForMaskedLM"], model_type="bert"))
    refuses(
        ["export", folder, "-o", at.out],
        2,
        "bad_input",
        "BertForMaskedLM, which is not supported",
        "vit, deit, swin, convnext",
    )


def test_a_config_that_is_no_json(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.emotions)
    (folder / "config.json").write_bytes(b"\xff\xfe{")
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "config.json is not readable JSON")


def test_a_config_that_lacks_an_entry(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.diffusion)
    at.edit(folder / "unet/config.json", lambda d: d.pop("in_channels"))
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "in_channels", "config.json")


def test_weights_of_another_shape_than_the_config(at: Any, refuses: Refuses) -> None:
    file = at.copy(at.emotions) / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] = np.repeat(tensors["classifier.weight"], 2, axis=0)
    save_file(tensors, file, {"format": "pt"})
    refuses(["export", file.parent, "-o", at.out, "--no-verify"], 2, "bad_input", "classifier.weight")


def test_a_checkpoint_that_lacks_a_tensor(at: Any, refuses: Refuses) -> None:
    file = at.copy(at.emotions) / "model.safetensors"
    tensors = load_file(file)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, file, {"format": "pt"})
    refuses(["export", file.parent, "-o", at.out, "--no-verify"], 2, "bad_input", "vit.layernorm.weight")


def test_a_classifier_without_preprocessing(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.emotions)
    (folder / "preprocessor_config.json").unlink()
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "preprocessor_config.json", "Copy that file")


def test_a_pipeline_without_a_tokenizer(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.diffusion)
    shutil.rmtree(folder / "tokenizer")
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "tokenizer")


def test_a_pipeline_with_an_unsupported_scheduler(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.diffusion)
    at.edit(folder / "scheduler/scheduler_config.json", lambda d: d.update(_class_name="VQScheduler"))
    refuses(["export", folder, "-o", at.out], 2, "bad_input", "scheduler class 'VQScheduler'", "DDIMScheduler")


def test_a_revision_of_a_folder(at: Any, refuses: Refuses) -> None:
    refuses(
        ["export", at.emotions, "--revision", "main", "-o", at.out], 2, "bad_input", "a revision belongs to a hub id"
    )


def test_a_target_that_is_something_else(at: Any, refuses: Refuses) -> None:
    (at.tmp / "precious").mkdir()
    (at.tmp / "precious/thesis.txt").write_text("years of work")
    refuses(["export", at.emotions, "-o", at.tmp / "precious", "--force"], 2, "bad_input", "not an artifact", "-o")


def test_a_target_that_is_there_already(at: Any, refuses: Refuses) -> None:
    refuses(["export", at.emotions, "-o", at.copy(at.labelling)], 2, "bad_input", "exists", "--force")
