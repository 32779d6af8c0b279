"""Arguments that are converted without pydantic come out as typer converts them; all others go to typer."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from vitrify import cli
from vitrify.cli_quick import _NOT_PLAIN, quicken

GIVEN = ("3", "-2", "0", "1.5", "1e3", "nan", "a red apple", "", " 7 ", "latency", "LATENCY", "preview", "1_000", "٣")


def commands() -> dict[str, Any]:
    """Every command, also those below others, as typer makes them: name -> command, not quickened."""
    found: dict[str, Any] = {}
    for name, command in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {n}": c for n, c in below.items()}
    return found


def told(convert: Callable[..., Any], *given: Any) -> Any:
    try:
        return convert(*given)
    except Exception as exc:
        return type(exc).__name__, str(exc)


@pytest.mark.parametrize("name", commands())
def test_every_parameter_of_every_command_comes_out_the_same(name: str, tmp_path: Path) -> None:
    command = commands()[name]
    context = command.make_context("it", [], resilient_parsing=True)
    for param in command.get_params(context):
        if not hasattr(param, "type_descriptor"):
            pytest.skip("needs typer 0.26 or newer")
        assert "process_value" in vars(param)
        several = param.multiple or param.nargs != 1
        for given in (*GIVEN, str(tmp_path), str(tmp_path / "no"), param.default, None):
            value = [given, given] if several and isinstance(given, str) else given
            expected = told(type(param).process_value, param, context, value)
            found = told(param.process_value, context, value)
            assert (repr(found), type(found)) == (repr(expected), type(expected)), (param.name, value)


class Kind(Enum):
    ONE = "one"


def test_what_is_out_of_range_or_unknown_is_typers_error() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def it(number: Annotated[int, typer.Option(min=1, max=9)] = 1, kind: Kind = Kind.ONE) -> None:
        raise AssertionError

    command = get_command(app)
    quicken(command)
    context = command.make_context("it", ["--number", "9", "--kind", "one"])
    assert context.params == {"number": 9, "kind": Kind.ONE}
    for arguments in (["--number", "10"], ["--number", "x"], ["--kind", "two"]):
        with pytest.raises(Exception, match=r"9|valid|one of") as caught:
            command.make_context("it", arguments)
        assert hasattr(caught.value, "format_message")


def test_a_path_that_cannot_be_read_is_left_to_typer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrify import cli_quick

    info = typer.Option("--output")
    assert cli_quick._plain(str(tmp_path), Path, info) == tmp_path
    monkeypatch.setattr(cli_quick.os, "access", lambda path, mode: False)
    assert cli_quick._plain(str(tmp_path), Path, info) is _NOT_PLAIN
    assert cli_quick._plain(str(tmp_path / "no"), Path, info) == tmp_path / "no"
