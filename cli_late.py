"""Commands of a command line, each imported and built when it is asked for.

typer reads the signature of every command that it knows before it runs one of them, and a command's module imports what
its options need: `generate` shall wait for neither.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from .cli_quick import quicken


class _Late(MutableMapping[str, Any]):
    """Name -> command. Its names are known at once, and a command is made when it is taken out.

    Args:
        where: name -> "module:attribute", of a function or of a `Typer` with commands below it.
    """

    def __init__(self, where: Mapping[str, str]) -> None:
        self._where = dict(where)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = self._where[name].partition(":")
            self._made[name] = _command(name, getattr(importlib.import_module(module), attribute))
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._where[name], self._made[name] = "", command

    def __delitem__(self, name: str) -> None:
        del self._where[name]
        self._made.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _command(name: str, found: Any) -> Any:
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
        for below in command.commands.values():
            quicken(below)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        command = get_command(alone)
    quicken(command)
    command.name = name
    return command


def late_group(where: Mapping[str, str]) -> type[TyperGroup]:
    """The class of a `Typer` whose commands are those of `where`, in its order; see `_Late`."""

    class Group(TyperGroup):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.commands = _Late(where)
            quicken(self)

        def list_commands(self, ctx: Any) -> list[str]:
            return list(self.commands)

    return Group
