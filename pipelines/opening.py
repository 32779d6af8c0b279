"""Sessions of components on one device: the one that was named, or the best one that opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import DeviceError, RuntimeFailure
from ..core.registry import load_runtime, runtime_for
from ..runtimes.base import Options, Probe, Session
from .budget import Budget
from .components import Components, Overrides

# The best first, then any other, then the CPU. A device that a library merely lists may still fail to open, and then
# the reason is told.
_PREFERENCE = ("cuda", "rocm", "directml", "coreml", "xpu", "gpu")
_LAST = "cpu"
_CHOOSERS = ("auto", "hetero")  # no devices: they choose one themselves, which only a user may leave to them


def open_components(
    components: Sequence[Component],
    at_once: Sequence[str],
    device: str | None = None,
    *,
    options: Options | None = None,
    runtime: str | None = None,
    budget: Budget | None = None,
    say: Callable[[str], None] | None = None,
) -> Components:
    """The components of one artifact on one device.

    Args:
        at_once: names of those that are opened now; the others are when they are asked for.
        device, options, runtime, say: as `load` takes them. budget: bounds what is open together.

    Raises:
        UsageError: the runtime does not open a component's format, or there is none of that name.
        DeviceError: no device is usable, or the one that was named is not.
        VitrifyError: a component cannot be opened; none stays open.
    """
    opened_by = [(c, runtime_for(c.format, runtime)) for c in components]
    options = options or Options()
    if device is not None:
        return _open_all(opened_by, at_once, Device.parse(device), options, budget)
    sessions, reason = _best(opened_by, at_once, options, budget)
    if say is not None:
        say(reason)
    return sessions


def _open_all(
    components: Sequence[tuple[Component, str]],
    at_once: Sequence[str],
    device: Device,
    options: Options,
    budget: Budget | None,
) -> Components:
    """Each component by the runtime of this name; those of `at_once` are open, or none is."""

    def opener(component: Component, runtime: str) -> Callable[[Overrides], Session]:
        return lambda changed: load_runtime(runtime).open(component, device, options, changed)

    parts = {component.name: component for component, _ in components}
    openers = {component.name: opener(component, runtime) for component, runtime in components}
    opened = Components(openers, parts=parts, budget=budget)
    try:
        for name in at_once:
            opened[name]
    except BaseException:
        opened.close()
        raise
    return opened


def _best(
    components: Sequence[tuple[Component, str]], at_once: Sequence[str], options: Options, budget: Budget | None
) -> tuple[Components, str]:
    """Sessions on the best device that every component's runtime has and that opens; and why it was chosen."""
    probes: list[Probe] = [load_runtime(name).probe() for name in dict.fromkeys(name for _, name in components)]
    ranked = _devices(probes)
    if not ranked:
        problems = [(f"{p.runtime}: {p.problem}", p.fix) for p in probes if p.problem]
        names = " and ".join(p.runtime for p in probes)
        why = " ".join(what for what, _ in problems) or "They have none in common." * (len(probes) > 1)
        fix = problems[0][1] if problems else "Run `vitrify doctor`."
        raise DeviceError(f"No device is usable with {names}. {why}".strip(), fix)
    failed: list[str] = []
    for device in ranked:
        try:
            sessions = _open_all(components, at_once, device, options, budget)
        except (DeviceError, RuntimeFailure) as exc:  # no such card, no memory left on it, no kernel for it
            if device == ranked[-1]:
                raise
            failed.append(f"{device} did not open: {exc.what}")
            continue
        names = " and ".join(f"{p.runtime} {p.version}" for p in probes)
        why = "; ".join(failed) or ("the best device there" if len(ranked) > 1 else "the only device there")
        return sessions, f"{device} with {names} ({why})"
    raise AssertionError("the last device opens or raises")


def _devices(probes: Sequence[Probe]) -> list[Device]:
    """The devices that every runtime has, the best first.

    One runtime lists "cuda" and another "cuda:0": a device without a number stands for any of its kind.
    """
    parsed = [[Device.parse(name) for name in probe.devices] for probe in probes]
    listed = [[device for device in devices if device.kind not in _CHOOSERS] for devices in parsed]

    def has(devices: Sequence[Device], wanted: Device) -> bool:
        numbers = [d.index for d in devices if d.kind == wanted.kind]
        return bool(numbers) and (wanted.index is None or wanted.index in numbers or None in numbers)

    common = dict.fromkeys(d for devices in listed for d in devices if all(has(other, d) for other in listed))
    numbered = {d.kind for d in common if d.index is not None}
    apart = [d for d in common if d.index is not None or d.kind not in numbered]  # not "cuda" and "cuda:0" both

    def rank(device: Device) -> int:
        if device.kind == _LAST:
            return len(_PREFERENCE) + 1
        return _PREFERENCE.index(device.kind) if device.kind in _PREFERENCE else len(_PREFERENCE)

    return sorted(apart, key=rank)
