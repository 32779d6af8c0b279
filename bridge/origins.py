"""The two things that are compiled: a pipeline's own components, and a ControlNet."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..core.errors import BadInput
from ..core.progress import Event, Report
from ..core.publish import disk_errors
from ..export.families.controlnet_flow import CLASSES
from ..export.families.pipelines import PIPELINES
from ..export.source import Source, open_source
from ..runtimes.torch.modules import no_bars, quiet_imports
from .configs import plain_config
from .origin import described, folder_of, scratch_folder, told_path

# nothing of these is compiled with a model
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "controlnet")


class PipelineOrigin:
    """A pipeline's denoiser, text encoders and autoencoder. See `Origin`."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.given = told_path(pipe.config) or type(pipe).__name__
        self.name = Path(self.given).name
        found = pipe.components.items()
        self.modules = {n: m for n, m in found if isinstance(m, torch.nn.Module) and n not in _LEFT_OUT}

    def fingerprint(self, report: Report) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for number, (name, module) in enumerate(self.modules.items()):
            report(Event(f"read {name}", number, len(self.modules), "components"))
            made[name] = described(name, module)
        return made

    @contextmanager
    def source(self, report: Report) -> Iterator[Source]:
        # a component of a hub's model tells the folder that it was fetched into
        parts = (told_path(plain_config(m)) for m in self.modules.values())
        paths = [self.given, *(str(Path(part).parent) for part in parts if part)]
        folders = {("vae" if n.startswith("vae") else n): m for n, m in self.modules.items()}
        found = folder_of(folders, [p for p in paths if (Path(p) / "model_index.json").is_file()], self.given)
        if found is not None:
            yield found
            return
        with scratch_folder() as scratch:
            with disk_errors(scratch / self.name):
                self._save(scratch / self.name, report)
            yield open_source(scratch / self.name, given=self.name)

    def _save(self, folder: Path, report: Report) -> None:
        """Write the components and a model_index.json, under a class that the exporter knows."""
        index = {k: v for k, v in dict(self.pipe.config).items() if not k.startswith("_")}
        components = self.pipe.components
        folder.mkdir(parents=True)
        with no_bars(), quiet_imports():
            for number, (name, component) in enumerate(components.items()):
                report(Event(f"save {name}", number, len(components), "components"))
                if component is None or name in _LEFT_OUT or not hasattr(component, "save_pretrained"):
                    index[name] = [None, None]
                else:
                    component.save_pretrained(str(folder / name))
        named = {"_class_name": self._exported_class(), "_diffusers_version": diffusers.__version__}
        text = json.dumps(named | index, indent=2, default=list) + "\n"
        (folder / "model_index.json").write_text(text, encoding="utf-8")

    def _exported_class(self) -> str:
        """The pipeline's class where the exporter knows it, or the first that it knows with the same components.

        Raises:
            BadInput: there is none.
        """
        own = type(self.pipe).__name__
        if own in PIPELINES:
            return own
        has = {n for n, c in self.pipe.components.items() if c is not None}
        for name in PIPELINES:
            cls = getattr(diffusers, name)
            optional = {*cls._optional_components, *_LEFT_OUT}
            parameters = inspect.signature(cls.__init__).parameters.items()
            needed = {n for n, p in parameters if n != "self" and p.default is inspect.Parameter.empty}
            if needed - optional == has - optional:
                return name
        raise BadInput(f"{own} cannot be exported.", f"Supported: {', '.join(PIPELINES)}.")


class ControlOrigin:
    """A ControlNet. See `Origin`."""

    def __init__(self, component: str, module: Any) -> None:
        self.component, self.module = component, module
        self.given = told_path(plain_config(module)) or component
        self.name = Path(self.given).name

    def fingerprint(self, report: Report) -> dict[str, Any]:
        report(Event(f"read {self.component}"))
        return {"controlnet": described(self.component, self.module)}

    @contextmanager
    def source(self, report: Report) -> Iterator[Source]:
        found = folder_of({"": self.module}, [self.given], self.given)
        if found is not None:
            yield found
            return
        with scratch_folder() as scratch:
            report(Event(f"save {self.component}"))
            with disk_errors(scratch / self.name), no_bars(), quiet_imports():
                self.module.save_pretrained(str(scratch / self.name))
            yield open_source(scratch / self.name, given=self.name)


def controls_of(pipe: Any) -> list[ControlOrigin]:
    """The ControlNets of a pipeline, each under the name that `wrap` knows it by.

    Raises:
        BadInput: they are of a kind that a pipeline of diffusers does not run compiled.
    """
    module = pipe.components.get("controlnet")
    if module is None:
        return []
    nets = getattr(module, "nets", None)
    name = str(plain_config(module if nets is None else nets[0]).get("_class_name"))
    if name in CLASSES:
        raise BadInput(
            f"{type(pipe).__name__} has a {name}, which is not compiled inside diffusers.",
            "Compile the pipeline without it, or export both: vitrify export --control, vitrify generate --controlnet.",
        )
    if nets is None:
        return [ControlOrigin("controlnet", module)]
    return [ControlOrigin(f"controlnet.{number}", net) for number, net in enumerate(nets)]
