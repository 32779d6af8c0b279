"""An artifact that a user names to run: opened without the exporter, which takes longer to import than to open it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.artifact import Artifact, is_artifact
from ..core.errors import UsageError
from ..pipelines.load import open_artifact

if TYPE_CHECKING:
    from .changed import Changes


def given_artifact(
    given: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    prediction_type: str | None = None,
    control: bool = False,
    changes: Changes | None = None,
) -> Artifact | None:
    """The artifact in a folder, ours or one that Optimum wrote; None where `given` is something else.

    A folder that is neither an artifact nor a model is opened too, for the error that says so.

    Args:
        revision, variant, config, prediction_type, control, changes: as `resolve.artifact_for` takes them.

    Raises:
        UsageError: something is asked of it that only an export can do.
        BadArtifact: it is damaged or unsafe.
    """
    folder = Path(given)
    if not folder.exists() or folder.is_file():
        return None  # a file is a single checkpoint
    if not is_artifact(folder) and _is_model(folder) and not _is_foreign(folder):
        return None
    refuse_source_options(folder, revision, variant)
    return _opened(folder, {"--config": config, "--prediction-type": prediction_type}, control, changes)


def refuse_source_options(folder: Path, revision: str | None, variant: str | None) -> None:
    """Options that choose what is read of a source mean nothing for an artifact, and are not dropped without a word.

    Raises:
        UsageError: `folder` is an artifact's and one was given.
    """
    given = [name for name, value in (("--revision", revision), ("--variant", variant)) if value is not None]
    if given and (is_artifact(folder) or _is_foreign(folder)):
        raise UsageError(
            f"{' and '.join(given)} choose what is read of a source, and {folder} is an artifact.",
            "Leave them out, or name the source.",
        )


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", "config.json"))


def _is_foreign(folder: Path) -> bool:
    from ..pipelines.foreign import is_foreign  # knows every family by its class

    return is_foreign(folder)


def _opened(folder: Path, options: Mapping[str, str | None], control: bool, changes: Changes | None) -> Artifact:
    """An artifact, where nothing is asked of it that only an export can do."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option} is for single checkpoints, and {folder} is none.", "Leave it out.")
    if changes is not None and changes.given():
        raise UsageError(
            f"{' and '.join(changes.given())} change what is exported, and {folder} is an artifact.",
            "Name the model, or export it again.",
        )
    artifact = open_artifact(folder)
    if control:
        from ..pipelines.control import is_residual

        inputs = [name for component in artifact.components.values() for name in component.inputs]
        if not any(map(is_residual, inputs)):
            raise UsageError(
                f"{folder} is an artifact that takes no ControlNet.", "Export the model again, with --control."
            )
    return artifact
