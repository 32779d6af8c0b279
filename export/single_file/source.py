"""A single checkpoint in its original layout as a source: its tensors under the names of diffusers' modules.

Nothing of it is read but the header. Tensors that lie in the file as the modules want them, or as rows of one that
does, are referred to; the few others are copied when an export needs them (origins.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import BadInput
from ...core.safetensors_header import TensorEntry, read_header
from ..gguf_source import bytes_unpacked, read_gguf, unpacked
from ..source import Source, SourceComponent, describe_source
from .base import INDEX, SCHEDULER, Base, open_base
from .configs import CONFIG_FIX
from .detect import layout_of
from .folder import as_json, clip_tokenizer, written
from .layouts import Layout, Part
from .origins import SIDE_FILE, Checkpoint, Origin, common_dtype, placed, why_copied, write_copies
from .schedulers import adapted

Config = dict[str, Any]
SINGLE_FILES = (".safetensors", ".gguf")
# makes an original-layout safetensors of a file of another kind, in a folder: names -> where its tensors lie then
Unpack = Callable[[Checkpoint, Path], Checkpoint]


@dataclass(frozen=True)
class Mapped:
    """A component's tensors in a single file.

    origins: module name -> where it is. checkpoint: the component's tensors by their names without a prefix.
    unpack: what has to be done before a tensor's bytes are those of numbers.
    """

    origins: Mapping[str, Origin]
    checkpoint: Checkpoint
    unpack: Unpack | None = None

    def copied(self) -> dict[str, str]:
        """Module name -> why its bytes are copied, of those that are."""
        there = placed(self.origins, self.checkpoint)
        return {n: why_copied(o, self.checkpoint) for n, o in self.origins.items() if n not in there}

    def __call__(self, side: Path, alone: bool = False) -> dict[str, TensorEntry]:
        """Module name -> its bytes, in the user's file or in one that is written into the folder `side`.

        Args:
            alone: write all of the component's tensors: where the disk cannot link to the user's file, a copy of the
                whole file beside each graph would be several times as much.
        """
        raw = self.checkpoint if self.unpack is None else self.unpack(self.checkpoint, side)
        there = {} if alone and self.unpack is None else placed(self.origins, raw)
        rest = {name: origin for name, origin in self.origins.items() if name not in there}
        made = write_copies(rest, raw, side / SIDE_FILE, common_dtype(raw)) if rest else {}
        return {**there, **made}


def open_single_file(
    path: Path,
    *,
    given: str = "",
    config: str | None = None,
    prediction_type: str | None = None,
) -> Source:
    """Recognize a single checkpoint and describe it as the diffusers folder that it would be.

    Args:
        path: a .safetensors file, or a .gguf file.
        given: as the user named it.
        config: a diffusers folder or an artifact whose configs, scheduler and tokenizers are taken, and the weights of
            components that the file lacks; None reads the configs off the shapes, for the known families.
        prediction_type: what the model predicts, where neither the family nor the file tells.

    Raises:
        BadInput: damaged, a pickle, no layout that is known, a part that is missing, or shapes of no known model.
        UsageError: a prediction type that does not exist.
    """
    names, unpack = _read(path)
    base = open_base(config) if config is not None else None
    layout = layout_of(path, names, base.pipeline if base is not None else None)
    found = {part.folder: _tensors(part, names) for part in layout.parts}
    configs = _configs(path, layout, found, base)
    index = _index(layout, configs, base)
    folder = written(_files(path, layout, configs, index, base, names, prediction_type))
    described = describe_source(folder, given or str(path))
    mapped: dict[str, Mapped] = {}
    for part in layout.parts:
        if found[part.folder] and part.folder in configs:
            tensors = found[part.folder]
            origins = _told(path, part, partial(part.origins, tensors, configs[part.folder]))
            mapped[part.folder] = Mapped(origins, tensors, unpack)
    components = tuple(
        _component(path, spec, component_config, config_path, mapped.get(spec.folder), base)
        for spec, component_config, config_path in described.parts
    )
    settings = {"config": config, "prediction_type": prediction_type}
    return Source(
        folder,
        given or str(path),
        described.family,
        described.architecture,
        described.index,
        components,
        file=path,
        settings={name: value for name, value in settings.items() if value is not None},
        notes=(*_notes(path, layout, mapped, names), *_assumed(layout, base, index, names, prediction_type)),
    )


def _read(path: Path) -> tuple[Checkpoint, Unpack | None]:
    """A file's tensors, and how they are unpacked."""
    if path.suffix.lower() == ".gguf":
        return read_gguf(path), unpacked
    return read_header(path), None


def _tensors(part: Part, names: Checkpoint) -> dict[str, TensorEntry]:
    """A part's tensors by their names without the prefix; empty where the file lacks it."""
    prefix = part.prefix(names)
    if prefix is None:
        return {}
    return {name.removeprefix(prefix): entry for name, entry in names.items() if name.startswith(prefix)}


def _told(path: Path, part: Part, read: Callable[[], Any]) -> Any:
    """What is read off a part's tensors; one that should be there and is not is named."""
    try:
        return read()
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as exc:
        raise BadInput(
            f"{path}: its {part.kind} is not whole or not of the usual layout ({type(exc).__name__}: {exc}).",
            f"Download the file again. {CONFIG_FIX}",
        ) from exc


def _configs(
    path: Path, layout: Layout, found: Mapping[str, dict[str, TensorEntry]], base: Base | None
) -> dict[str, Config]:
    """Folder -> config.json of every part that the model has: from `base`, else from the shapes.

    Raises:
        BadInput: a part that is nowhere, or of no model that is known.
    """
    here = [part for part in layout.parts if _is_here(path, layout, part, bool(found[part.folder]), base)]
    configs = {}
    for part in here:
        theirs = base.config(part.folder) if base is not None else None
        if theirs is not None:
            configs[part.folder] = theirs
        elif not part.known(found[part.folder]):
            what = f"{path}: its {part.folder} has the shapes of no {layout.title} model whose config is known."
            raise BadInput(what, CONFIG_FIX)
        else:
            configs[part.folder] = _told(path, part, partial(part.config, found[part.folder]))
    return configs


def _is_here(path: Path, layout: Layout, part: Part, found: bool, base: Base | None) -> bool:
    """Whether the model has a part: in the file, or with weights in `base`.

    Raises:
        BadInput: it is nowhere, and no model comes without it.
    """
    if found or (base is not None and base.weights(part.folder) is not None):
        return True
    if part.optional:
        return False
    where = "" if base is None else f", and {base.folder} has no weights of one"
    raise BadInput(
        f"{path} is a {layout.title} checkpoint without its {part.folder} ({part.kind}; looked for "
        f"{' or '.join(p + part.tells for p in part.prefixes)}){where}.",
        "Give --config FOLDER, a diffusers folder of the same architecture that has it.",
    )


def _index(layout: Layout, configs: Mapping[str, Config], base: Base | None) -> Config:
    """model_index.json: which classes the parts are of, and which the model does not have."""
    index: Config = {"_class_name": layout.pipeline, "scheduler": ["diffusers", layout.scheduler["_class_name"]]}
    if base is not None:
        index = dict(base.index)
    elif _inpaints(configs):
        index["_class_name"] = layout.pipeline.replace("Img2Img", "").replace("Pipeline", "InpaintPipeline")
    for part in layout.parts:
        if part.folder not in configs:
            index[part.folder] = [None, None]
        elif base is None or not base.has(part.folder):
            index[part.folder] = [part.library, part.kind]
    for name, pad in layout.tokenizers.items():
        encoder = name.replace("tokenizer", "text_encoder")
        if encoder not in configs:
            index[name] = [None, None]
        elif base is None or not base.has(name):
            index[name] = ["transformers", "T5TokenizerFast" if pad is None else "CLIPTokenizer"]
    return index if base is not None else index | dict(layout.extra)


def _inpaints(configs: Mapping[str, Config]) -> bool:
    """Whether the UNet also takes a mask and a masked picture."""
    unet = configs.get("unet")
    return unet is not None and unet["in_channels"] == 2 * configs["vae"]["latent_channels"] + 1


def _files(
    path: Path,
    layout: Layout,
    configs: Mapping[str, Config],
    index: Config,
    base: Base | None,
    names: Checkpoint,
    prediction_type: str | None,
) -> dict[str, bytes]:
    """Everything of the model's folder but weights: path -> content."""
    if base is None:
        guided = bool(configs.get("transformer", {}).get("guidance_embeds"))
        scheduler = adapted(layout.scheduler, names, prediction_type, guided)
    else:
        scheduler = adapted(base.scheduler(), names, prediction_type, True)
    files = {INDEX: as_json(index), SCHEDULER: as_json(scheduler)}
    files |= {f"{folder}/config.json": as_json(config) for folder, config in configs.items()}
    for name, pad in layout.tokenizers.items():
        if not any(index[name]):
            continue
        content = base.tokenizer(name) if base is not None else {}
        if not content and pad is not None:
            content = clip_tokenizer(pad)
        if not content:
            raise BadInput(
                f"{path} is a {layout.title} checkpoint: its {name} is T5's, whose vocabulary no checkpoint holds.",
                CONFIG_FIX,
            )
        files |= {f"{name}/{file}": data for file, data in content.items()}
    return files


def _component(
    path: Path, spec: Any, config: Config, config_path: Path, mapped: Mapped | None, base: Base | None
) -> SourceComponent:
    if mapped is not None:
        return SourceComponent(spec, config, config_path, dict(mapped.checkpoint), None, mapped, file=path)
    weights = base.weights(spec.folder) if base is not None else None
    if base is None or weights is None:
        raise BadInput(
            f"{path} has no {spec.folder}.", "Give --config FOLDER, a diffusers folder of the same architecture."
        )
    return SourceComponent(spec, config, next(iter(weights.values())).file.parent / "config.json", weights, None)


def _notes(path: Path, layout: Layout, mapped: Mapping[str, Mapped], names: Checkpoint) -> Iterable[str]:
    """What of the file is copied and why, and what is left out."""
    yield f"{path.name} is a {layout.title} checkpoint in its original layout"
    for folder, one in mapped.items():
        if one.unpack is not None:
            size = bytes_unpacked(one.checkpoint) / 1e9
            yield f"{folder}: its {len(one.checkpoint)} tensors are dequantized into a second copy of {size:.1f} GB"
            continue
        reasons = Counter(one.copied().values())
        if reasons:
            why = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
            yield f"{folder}: {sum(reasons.values())} of {len(one.origins)} tensors are copied: {why}"
    used = {entry.name for one in mapped.values() for entry in one.checkpoint.values()}
    left = Counter(name.split(".")[0] for name in names if name not in used)
    if left:
        listed = ", ".join(f"{head} ({count})" for head, count in left.most_common(4))
        yield f"{sum(left.values())} tensors of {path.name} belong to no component and are left out: {listed}"


def _assumed(
    layout: Layout, base: Base | None, index: Config, names: Checkpoint, prediction_type: str | None
) -> Iterable[str]:
    """What no file tells and was taken from the family."""
    for part in layout.parts:
        if part.optional and not any(index[part.folder]):
            where = "not in the file" if base is None else f"neither in the file nor in {base.folder}"
            yield f"{part.folder} ({part.kind}) is {where}: the model runs without it"
    if base is not None:
        return
    scheduler = adapted(layout.scheduler, names, prediction_type, False)
    if prediction_type is None and "prediction_type" in scheduler and "v_pred" not in names:
        yield f"prediction type {scheduler['prediction_type']}, which no file tells: --prediction-type names another"
