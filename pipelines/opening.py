"""Sessions of components: on the device that was named, on the best one that opens, or each on its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import DeviceError, RuntimeFailure
from ..core.registry import load_runtime, runtime_for
from ..runtimes.base import Options, Probe, Session
from ..runtimes.options import check_options, left_out, options_for, taken_by
from ..runtimes.preference import preferred
from .components import Components, Overrides
from .memory_report import Watch
from .offload import Wish, decide
from .placing import placed
from .prompt_part import PromptParts


@dataclass(frozen=True)
class _Opening:
    """What is opened, once the devices are known.

    components: each with its runtime's name. at_once: names of those that every call uses; they are opened now, but
    for those of `late`. fixed: devices that the user gave to single components. once: those that are opened in two
    parts. said: components with an option that they do without, once that was told.
    """

    components: Sequence[tuple[Component, str]]
    at_once: Sequence[str]
    options: Options
    fixed: Mapping[str, Device]
    wish: Wish
    beside: bool
    watch: Watch | None
    say: Callable[[str], None]
    late: Collection[str] = ()
    once: Mapping[str, PromptParts] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)

    def on(self, device: Device, *, last: bool = True) -> Components:
        """Those that were not placed on `device`; those of `at_once` are open, or none is.

        last: nothing else is tried, so that with `beside` they may as well be open soon.
        """
        devices = {c.name: self.fixed.get(c.name, device) for c, _ in self.components}
        runtimes = {name: load_runtime(name) for name in dict.fromkeys(name for _, name in self.components)}
        check_options(list(runtimes.values()), self.options)
        for name in left_out(list(runtimes.values()), self.options):
            self.say(f"without {name}, which {' and '.join(runtimes)} does not have; the rest of the preset is done")
        elsewhere = [(c, name) for c, name in self.components if devices[c.name].kind != "cpu"]
        done = decide(
            [c for c, _ in self.components],
            self.at_once,
            devices,
            self.options,
            self.wish,
            bool(elsewhere) and all(_streams(c, runtimes[name]) for c, name in elsewhere),
        )

        # where a session is opened for one call, or for one that comes soon
        soon = self.beside or done.budget is not None
        options = replace(done.options, lazy=True) if soon else done.options

        def opener(component: Component, name: str) -> Callable[[Overrides], Session]:
            runtime, where = runtimes[name], devices[component.name]
            own = options_for(runtime, options)

            def open_one(one: Component, changed: Overrides) -> Session:
                return self._told(one, runtime.open(one, where, own, changed))

            parts = self.once.get(component.name)
            if parts is not None:
                return lambda changed: parts.open(open_one, changed)
            return lambda changed: open_one(component, changed)

        parts = {component.name: component for component, _ in self.components}
        openers = {component.name: opener(component, name) for component, name in self.components}
        beside = [c.name for c, name in self.components if getattr(runtimes[name], "opens_beside", False)]
        ways = {c.name: _way(name, devices[c.name], options_for(runtimes[name], options))
                for c, name in self.components}  # fmt: skip
        opened = Components(openers, parts=parts, budget=done.budget, beside=beside, watch=self.watch, ways=ways)
        try:
            now = [name for name in self.at_once if name not in self.late] if done.budget is None else []
            for name in now:
                if devices[name].kind == "cpu":  # a device's memory may not hold what two need to be opened
                    opened.ahead(name)
            for name in now:
                if not (self.beside and last and opened.is_coming(name)):
                    opened[name]
        except BaseException:
            opened.close()
            raise
        if done.reason:
            self.say(done.reason)
        return opened

    def _told(self, component: Component, session: Session) -> Session:
        """A session, once what it leaves out of the wishes is told; those that are opened again tell nothing new."""
        for name, why in getattr(session, "left_out", {}).items():
            if (component.name, name) not in self.said:
                self.said.add((component.name, name))
                self.say(f"{component.name} without {name}: {why}")
        return session


# options that change when and where, and not what comes out of a text encoder, which has no convolutions
_NO_NUMBERS = ("arena", "streams", "optional", "lazy", "winograd")


def _way(runtime: str, device: Device, options: Options) -> list[Any]:
    """What decides a text encoder's numbers beside its graph and its weights, as JSON data."""
    return [runtime, str(device), {n: v for n, v in asdict(options).items() if n not in _NO_NUMBERS}]


def _streams(component: Component, runtime: Any) -> bool:
    """Whether weights of this component can be streamed in: a plan says whether it was built for it."""
    flags = dict(component.details.get("engine", {})).get("flags", ())
    return "resident_weights" in taken_by(runtime) and "WEIGHT_STREAMING" in flags


def open_components(
    components: Sequence[Component],
    at_once: Sequence[str],
    device: str | None = None,
    *,
    place: Mapping[str, str] | None = None,
    options: Options | None = None,
    runtime: str | None = None,
    wish: Wish | None = None,
    beside: bool = False,
    watch: Watch | None = None,
    late: Collection[str] = (),
    once: Mapping[str, PromptParts] | None = None,
    say: Callable[[str], None] | None = None,
) -> Components:
    """The components of one artifact, on one device or on those that `place` names.

    Args:
        at_once: names of those that every call uses: opened now, but within a bound for memory when they are asked for.
        device, place, options, runtime, beside, watch, say: as `load` takes them.
        wish: what bounds is open together. late: names that are opened when they are asked for, and not now.
        once: component -> the two that are opened in its place.

    Raises:
        UsageError: the runtime does not open a component's format, there is none of that name, an option that none of
            the runtimes takes, or `place` names no component.
        DeviceError: no device is usable, or the one that was named is not.
        VitrifyError: a component cannot be opened; none stays open.
    """
    opened_by = [(c, runtime_for(c.format, runtime)) for c in components]
    fixed = placed(place or {}, [c.name for c in components])
    tell = say or (lambda line: None)
    opening = _Opening(opened_by, at_once, options or Options(), fixed, wish or Wish(), beside, watch, tell, late,
                       once or {})  # fmt: skip
    if device is not None:
        return opening.on(Device.parse(device))
    free = [(c, name) for c, name in opened_by if c.name not in fixed]
    if not free:
        return opening.on(next(iter(fixed.values())))
    sessions, reason = _best(opening, free)
    tell(reason)
    return sessions


def _best(opening: _Opening, components: Sequence[tuple[Component, str]]) -> tuple[Components, str]:
    """Sessions on the best device that these components' runtimes all have and that opens; and why it was chosen."""
    probes: list[Probe] = [load_runtime(name).probe() for name in dict.fromkeys(name for _, name in components)]
    ranked = preferred(probes)
    if not ranked:
        problems = [(f"{p.runtime}: {p.problem}", p.fix) for p in probes if p.problem]
        names = " and ".join(p.runtime for p in probes)
        why = " ".join(what for what, _ in problems) or "They have none in common." * (len(probes) > 1)
        fix = problems[0][1] if problems else "Run `vitrify doctor`."
        raise DeviceError(f"No device is usable with {names}. {why}".strip(), fix)
    failed: list[str] = []
    for device in ranked:
        try:
            sessions = opening.on(device, last=device == ranked[-1])
        except (DeviceError, RuntimeFailure) as exc:  # no such card, no memory left on it, no kernel for it
            if device == ranked[-1]:
                raise
            failed.append(f"{device} did not open: {exc.what}")
            continue
        names = " and ".join(f"{p.runtime} {p.version}" for p in probes)
        why = "; ".join(failed) or ("the best device there" if len(ranked) > 1 else "the only device there")
        placed_ = "".join(f"; {name} on {where}, as it was placed" for name, where in opening.fixed.items())
        return sessions, f"{device} with {names} ({why}){placed_}"
    raise AssertionError("the last device opens or raises")
