"""The command `doctor` and its screen: what is here, what runs it, what is missing, and how to get it."""

from __future__ import annotations

from typing import Any

import typer

from . import screen
from .arguments import Json


def doctor(json: Json = False) -> None:
    """Show the machine, its devices, the runtimes, the recipes, and what to repair.

    Exits with 4 where no runtime is usable.
    """
    from .runtimes.doctor import examine

    found = examine()
    if json:
        screen.print_json(found)
    else:
        print_doctor(found)
    if not any(r.get("usable") for r in found["runtimes"].values()):
        raise typer.Exit(4)


def print_doctor(found: dict[str, Any]) -> None:
    """All that `examine` found, on stdout."""
    for name, value in found["machine"].items():
        print(f"{name:13} {', '.join(value) if isinstance(value, list) else value}")
    print()
    if found.get("devices"):
        screen.table([_device(row) for row in found["devices"]], ["device", "what it is", "runs it"])
    screen.table(
        [_runtime(name, row, found.get("chosen", {})) for name, row in found["runtimes"].items()] + [_export(found)],
        ["runtime", "devices", "what it is for, or what is missing"],
    )
    providers = [p for row in found["runtimes"].values() for p in row.get("details", {}).get("providers", ())]
    if providers:
        print("ONNX Runtime's execution providers (-O provider=NAME):")
        screen.table([_provider(p) for p in providers], ["provider", "devices", "state", "how to get it"])
    for name, choice in found.get("chosen", {}).items():
        print(f"without --device {name} uses {choice['device']}: {choice['why']}")
    print()
    screen.print_recipes(found["recipes"])
    for problem in found["problems"]:
        print(f"\nproblem: {problem['what']}\n    fix: {problem['fix']}")


def _device(row: dict[str, Any]) -> list[str]:
    runs = ", ".join(f"{r['runtime']} ({r['provider']})" if r["provider"] else r["runtime"] for r in row["runs"])
    state = runs or f"{row['what']} {row['fix']}".strip()
    return [row["device"], row["name"], state]


def _runtime(name: str, row: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    buys = row.get("buys", "")
    if row.get("usable"):
        return [f"{name} {row.get('version')}", ", ".join(row.get("devices", [])), buys]
    what, fix = row.get("what") or "It does not say why.", row.get("fix") or ""
    return [name, "not usable", " ".join(part for part in (what, fix, buys and f"({buys})") if part)]


def _export(found: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["export"]["versions"].items())
    return ["export", "", versions] if found["export"]["usable"] else ["export", "not usable", found["export"]["fix"]]


def _provider(row: dict[str, Any]) -> list[str]:
    if row["usable"]:
        state = f"works ({row['version']})" + (f"; {row['missing']}" if row["missing"] else "")
    elif row["usable"] is None:
        state = f"found ({row['version']}), not tried"
    elif row["found"]:
        state = f"found ({row['version']}), not usable: {row['missing']}"
    else:
        state = row["missing"]
    return [row["name"], ", ".join(row["opened"] or row["devices"]), state, row["fix"]]
