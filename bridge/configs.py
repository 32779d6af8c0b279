"""Which class and config a component has, in a pipeline and in an artifact; and if those are of one architecture."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict

from ..core.artifact import Artifact
from ..core.errors import BadArtifact
from ..core.json_file import read_json_object

AUTOENCODER = ("vae_decoder", "vae_encoder")  # a pipeline's `vae`
_LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name
# what may differ between two models of one architecture, or between the libraries' versions
_NO_MATTER = {
    *("sample_size", "force_upcast", "dtype", "torch_dtype", "transformers_version", "architectures", "use_cache"),
    *("return_dict", "output_hidden_states", "output_attentions", "name_or_path"),
}


def names_in(artifact: Artifact, component: str) -> tuple[str, ...]:
    """The artifact's components that run a pipeline's, such as "unet", "vae" or "controlnet.1"."""
    stem = component.partition(".")[0]
    wanted = AUTOENCODER if stem == "vae" else (stem,)
    return tuple(name for name in wanted if name in artifact.components)


def class_of(artifact: Artifact, component: str, index: Mapping[str, Any]) -> type[torch.nn.Module]:
    """The class that a pipeline's component has in diffusers or transformers, by what the artifact's files say.

    Raises:
        BadArtifact: they name none, or one that is in neither.
    """
    given = config_of(artifact, component)
    library, name = index.get(component) or (None, None)
    named = [(library, name), ("diffusers", given.get("_class_name"))]
    named += [("transformers", architecture) for architecture in given.get("architectures") or ()]
    for library, name in named:
        if library in _LIBRARIES and isinstance(name, str):
            found = getattr(importlib.import_module(library), name, None)
            if inspect.isclass(found) and issubclass(found, torch.nn.Module):
                return found
    raise BadArtifact(
        f"The files of {artifact.root} do not say which class its {component} has.",
        f"Export the model again, or give that component yourself: pipeline(..., {component}=...).",
    )


def config_of(artifact: Artifact, component: str) -> dict[str, Any]:
    """The config.json of a pipeline's component; nothing where the folder has none."""
    alone = len(artifact.components) == 1  # a ControlNet's lies in the folder itself
    for name in (*names_in(artifact, component), component.partition(".")[0], *[""] * alone):
        path = artifact.root / name / "config.json"
        if path.is_file():
            return read_json_object(path)
    return {}


def made_config(cls: Any, given: Mapping[str, Any]) -> Any:
    """A config as an instance of `cls` has it, from its config.json: with defaults for what that leaves out."""
    if not hasattr(cls, "config_name"):
        return cls.config_class.from_dict(dict(given))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return FrozenDict({**defaults, **given})


def plain_config(module: Any) -> dict[str, Any]:
    """A component's config as a table, with its class."""
    config = module.config
    return {"_class_name": type(module).__name__, **(config if isinstance(config, Mapping) else config.to_dict())}


def differences(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The entries that two configs both have, with other values, where those make another model of it.

    Tables are left out: transformers writes their defaults out or not, by its version.
    """
    common = [k for k in theirs if k in own and k not in _NO_MATTER and (k == "_class_name" or not k.startswith("_"))]
    compared = [k for k in common if not isinstance(own[k], Mapping) and None not in (own[k], theirs[k])]
    return [k for k in compared if _plain(own[k]) != _plain(theirs[k])]


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value, default=str))
