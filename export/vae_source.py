"""A VAE alone, as diffusers saves it: a folder, a model's folder that has one, or a repository of the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import BadInput
from ..core.json_file import read_json_object
from ..core.progress import Report, silent
from ..core.safetensors_header import open_checkpoint
from .families.vae import check_vae
from .hub import fetch_vae, is_hub_id
from .source import SourceComponent, described_part
from .spec import ComponentSpec, Config

_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class VaeSource:
    """A VAE's folder. given: as the user named it. revision: the commit, of a hub id. kind: its class in diffusers."""

    folder: Path
    given: str
    revision: str | None
    config: Config
    kind: str

    @property
    def named(self) -> str:
        """What finds it again: a hub id at its commit, or the path that was given."""
        return self.given if self.revision is None else f"{self.given.partition('@')[0]}@{self.revision}"

    def component(self, spec: ComponentSpec) -> SourceComponent:
        """This VAE as the component that `spec` describes.

        Raises:
            BadInput: its config lacks something, or its weights are missing, damaged or pickles.
        """
        _, config, path = described_part(self.folder, replace(spec, folder=""))
        return SourceComponent(spec, config, path, open_checkpoint(self.folder, (_STEM,), None), None)


def vae_source(
    given: str,
    *,
    option: str = "--vae",
    token: str | None = None,
    offline: bool | None = None,
    report: Report = silent,
) -> VaeSource:
    """Open a VAE's folder, or fetch it.

    Args:
        given: a folder that save_pretrained wrote, of a VAE or of a model that has one; or owner/name, perhaps with
            @revision behind it. option: what named it, for messages.
        token, offline: of the hub; see `fetch`.

    Raises:
        BadInput: it is no VAE of a kind that is supported, or cannot be had.
    """
    repo, _, revision = given.partition("@")
    commit = None
    folder = Path(given)
    if not folder.exists() and is_hub_id(repo):
        fetched = fetch_vae(repo, revision=revision or None, token=token, offline=offline, report=report)
        folder, commit = fetched.folder, fetched.revision
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise BadInput(f"{option} {given} {kind}.", "Give the folder of a VAE in diffusers' layout, or a hub id.")
    # of a model's folder, its VAE
    folder = folder if (folder / "config.json").is_file() else folder / "vae"
    if not (folder / "config.json").is_file():
        raise BadInput(f"{option} {given} holds no VAE.", "Give the folder of one, with its config.json.")
    config = read_json_object(folder / "config.json")
    check_vae(given, config)
    return VaeSource(folder, given, commit, config, str(config["_class_name"]))
