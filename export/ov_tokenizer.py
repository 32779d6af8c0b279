"""tokenizer.json -> OpenVINO IR beside it, which OpenVINO GenAI reads instead."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..core.json_file import read_json_object
from ..core.progress import Event, Report, silent
from ..core.publish import disk_errors
from .ir import save_ir

XML = "openvino_tokenizer.xml"
_NEEDS = {"openvino_tokenizers": "openvino-tokenizers", "transformers": "transformers"}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# where tokenizers differ: case, digits, signs, accents, spaces, a script without them, nothing
_TEXTS = ("A photo of 2 cats, it's CAFÉ-style!", "  雪だるま\tand \U0001f600", "")


def write_ov_tokenizers(root: Path, report: Report = silent) -> list[str]:
    """Write openvino_tokenizer.xml and .bin beside each tokenizer*/tokenizer.json below `root`.

    Vitrify and Optimum Intel read tokenizer.json, so an artifact without them is whole.

    Returns:
        At most one note: why OpenVINO GenAI will not open the folder, and how to mend it.

    Raises:
        DiskError: the disk is full.
    """
    folders = sorted(p.parent for p in root.glob("tokenizer*/tokenizer.json"))
    for folder in folders:
        for path in (folder / XML, (folder / XML).with_suffix(".bin")):
            path.unlink(missing_ok=True)  # the source's may give other tokens
    missing = [name for module, name in _NEEDS.items() if importlib.util.find_spec(module) is None]
    if folders and missing:
        return [_refused(f"it needs {' and '.join(missing)}", 'pip install "vitrify[genai]", then compile again')]
    for folder in folders:
        report(Event(f"convert {folder.name}"))
        try:
            model = _converted(folder)
        except Exception as exc:  # of a kind of tokenizer that it does not know, the library raises anything
            said = (str(exc).splitlines() or [""])[0]
            why = f"{folder.name} is not converted ({type(exc).__name__}: {said})"
            return [_refused(why, "pip install --upgrade openvino openvino-tokenizers, then compile again")]
        if model is None:
            return [_refused(f"OpenVINO's {folder.name} gives other tokens", "use vitrify or Optimum Intel")]
        with disk_errors(root):
            save_ir(model, folder / XML)
    return []


def _refused(why: str, fix: str) -> str:
    return f"vitrify runs it; OpenVINO GenAI will not open the folder: {why}; {fix}"


def _converted(folder: Path) -> Any:
    """OpenVINO's model of the tokenizer; None where it does not give the same tokens."""
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    config = read_json_object(folder / "tokenizer_config.json")
    given = {name: config[name] for name in _SPECIAL if config.get(name) is not None}
    special = {name: token["content"] if isinstance(token, dict) else token for name, token in given.items()}
    path = str(folder / "tokenizer.json")
    model = convert_tokenizer(PreTrainedTokenizerFast(tokenizer_file=path, **special))
    ours = Tokenizer.from_file(path)
    ours.no_truncation()
    ours.no_padding()
    theirs = ov.Core().compile_model(model, "CPU")
    same = all(theirs([text])["input_ids"][0].tolist() == ours.encode(text).ids for text in _TEXTS)
    return model if same else None
