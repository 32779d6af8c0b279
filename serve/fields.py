"""What the protocols share: bodies read strictly, refused in words that name the field, and made into requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .asked import GenerateBody
from .catalogue import ModelInfo
from .errors import BadField, Unsupported
from .interface import Core
from .requests import GenerateRequest
from .settings import Settings

M = TypeVar("M", bound=BaseModel)
_SAID = 5  # of the things that are wrong with a body
_LONGEST = 80  # characters of a field's name that are repeated


def read(kind: type[M], given: Mapping[str, Any], names: Mapping[str, str] | None = None) -> M:
    """A body as its model.

    Args:
        names: the model's name of a field -> the client's, where they differ; a field of a field by its path, as
            "control.strength", or by its own name.

    Raises:
        BadField: says of each field what is wrong with it.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        where = [_where(error["loc"], names or {}) for error in errors[:_SAID]]
        said = "; ".join(f"{place or 'body'}: {error['msg']}" for place, error in zip(where, errors, strict=False))
        more = f" (and {len(errors) - _SAID} more)" if len(errors) > _SAID else ""
        raise BadField(f"{said}{more}.", "See /docs for the fields.", where[0] or None) from exc


def _where(path: tuple[int | str, ...], names: Mapping[str, str]) -> str:
    parts, inside = [], ""
    for part in map(str, path):
        inside = inside if part.isdigit() else f"{inside}.{part}".strip(".")
        parts.append(names.get(inside if not part.isdigit() else part, names.get(part, part)))
    said = ".".join(parts)
    return said.encode("utf-8", "backslashreplace").decode()[:_LONGEST]  # half a surrogate pair cannot be sent back


def drawer(core: Core, name: str | None) -> ModelInfo:
    """The model of this name, which can draw; without a name the first that can.

    Raises:
        UnknownModel: there is none of this name. Unsupported: it does not draw, or none does.
    """
    if name is not None:
        info = core.model(name)
        info.check(GenerateRequest.kind)
        return info
    for info in core.models.values():
        if info.draws:
            return info
    raise Unsupported("None of the models that are served draws pictures.", "Serve one that does.")


def to_draw(info: ModelInfo, given: Mapping[str, Any], names: Mapping[str, str], settings: Settings) -> GenerateRequest:
    """What to draw, with the native API's defaults and bounds; fields that are None count as not given.

    Raises:
        BadField: a field is out of its bounds, or a size is none that the model can draw.
        BadRequest, TooLarge: a picture is none that may be decoded. Unsupported: the model does not do that.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    body = read(GenerateBody, {"model": info.name, **fields}, names)
    try:
        return body.request(info, settings)
    except BadField as exc:
        param = _where(tuple(exc.param.split(".")), names) if exc.param is not None else None
        raise BadField(exc.what, exc.fix, param) from exc
