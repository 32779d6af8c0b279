"""Whether a model's components stay on their device together, work there in turn, or have their weights streamed in.

On a GPU the free memory decides, and what was decided is told. Sizes are estimates, as in budget.py; a tenth of the
free memory is left alone for what a library needs besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import DeviceError, UsageError
from ..core.machine import free_at_once, resident
from ..runtimes.base import Options
from ..runtimes.device_memory import free_memory
from .budget import HEADROOM, UNBOUNDED, Budget, session_bytes
from .step_cache import SHALLOW

_SHARE = 0.9  # of the free memory


class Offload(StrEnum):
    """auto: as a GPU's free memory wants it. none: everything stays open. components: one is open at a time.

    weights: those that do not fit are streamed in for each call, by runtimes that can.
    """

    AUTO = "auto"
    NONE = "none"
    COMPONENTS = "components"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Wish:
    """What a user asked for. memory: bytes that the components may hold; None: no bound."""

    offload: Offload = Offload.AUTO
    memory: int | None = None

    @classmethod
    def of(cls, offload: str, memory: int | None) -> Wish:
        """Raises:
        UsageError: there is no such way to offload.
        """
        if offload not in list(Offload):
            raise UsageError(f"There is no offload {offload!r}.", f"Give {', '.join(Offload)}.")
        return cls(Offload(offload), memory)


@dataclass(frozen=True)
class Offloading:
    """What is done. budget: None where all components stay open. reason: one line, empty where nothing was decided."""

    budget: Budget | None
    options: Options
    reason: str = ""


def decide(
    components: Sequence[Component],
    required: Sequence[str],
    devices: Mapping[str, Device],
    options: Options,
    wish: Wish,
    streams: bool,
) -> Offloading:
    """How these components share the memory of their devices.

    Args:
        required: names of those that every call uses.
        devices: component -> where it runs. streams: whether weights can be streamed in, by their runtimes and plans.

    Raises:
        DeviceError: a component does not fit alone, nor can its weights be streamed.
        UsageError: weights shall be streamed where no runtime can.
    """
    if not streams and wish.offload is Offload.WEIGHTS:
        raise UsageError(
            "The runtimes of this artifact do not stream weights.", "Give --offload components, or compile a plan."
        )
    accelerators = {devices[c.name] for c in components if devices[c.name].kind != "cpu"}
    if not accelerators and wish == Wish():
        return Offloading(None, options)  # the usual case, which reads no graph for its size
    sizes = _sizes(components)
    if not accelerators:
        return _on_cpu(sizes, required, options, wish)
    if len(accelerators) > 1:
        return _apart(sizes, required, options, wish, accelerators)
    (device,) = accelerators
    here = {n: size for n, size in sizes.items() if devices[n] == device}
    return _on_gpu(here, [n for n in required if n in here], device, options, wish, streams)


def _sizes(components: Sequence[Component]) -> dict[str, int]:
    """Bytes of an open session of each; a shallow graph's with those of its denoiser, beside which it stays open."""
    sizes = {c.name: session_bytes(c) for c in components}
    for shallow in [name for name in sizes if name.endswith(SHALLOW)]:
        whole = shallow.removesuffix(SHALLOW)
        sizes[whole] = sizes.get(whole, 0) + sizes.pop(shallow)
    return sizes


def _on_cpu(sizes: Mapping[str, int], required: Sequence[str], options: Options, wish: Wish) -> Offloading:
    in_turn = wish.offload is Offload.COMPONENTS
    if wish.memory is None and not in_turn:
        return Offloading(None, options)
    if wish.offload is Offload.NONE:
        raise UsageError("A bound for memory takes components in turn.", "Leave --offload none or --memory out.")
    free_at_once()
    if options.resident_weights is not None:
        sizes = {name: min(size, int(options.resident_weights * HEADROOM)) for name, size in sizes.items()}
    budget = Budget(UNBOUNDED if wish.memory is None else wish.memory, resident(), sizes, in_turn=in_turn)
    for name in required:
        budget.check(name)
    # an arena keeps what a component that was closed held, and quicker convolutions take more memory
    return Offloading(budget, replace(options, arena=False, winograd=False))


def _apart(
    sizes: Mapping[str, int], required: Sequence[str], options: Options, wish: Wish, devices: set[Device]
) -> Offloading:
    """Components on several accelerators: who spread them knows why."""
    if wish.offload is Offload.WEIGHTS:
        raise UsageError(
            "Weights are streamed into one device, and the components are on several.",
            "Give -O resident_weights=BYTES.",
        )
    if wish.memory is not None:
        names = ", ".join(sorted(str(d) for d in devices))
        raise UsageError(f"A bound for memory is of one device, not of {names}.", "Leave --memory out.")
    if wish.offload is Offload.COMPONENTS:
        return Offloading(Budget(UNBOUNDED, 0, sizes, in_turn=True), options)
    return Offloading(None, options)


def _on_gpu(
    sizes: Mapping[str, int],
    required: Sequence[str],
    device: Device,
    options: Options,
    wish: Wish,
    streams: bool,
) -> Offloading:
    if wish.offload is Offload.COMPONENTS:
        budget = Budget(wish.memory or UNBOUNDED, 0, sizes, device=str(device), in_turn=True)
        return Offloading(budget, options, f"one component at a time on {device}")
    if wish.memory is not None and (wish.offload is Offload.NONE or options.resident_weights is not None):
        raise UsageError(
            "A bound for memory takes components in turn.",
            "Leave --memory out, or --offload none and resident_weights.",
        )
    if wish.offload is Offload.NONE or options.resident_weights is not None:
        return Offloading(None, options)
    free = wish.memory if wish.memory is not None else free_memory(device)
    if free is None and wish.offload is Offload.WEIGHTS:
        raise UsageError(f"How much of {device}'s memory is free is not known.", "Give -O resident_weights=BYTES.")
    if free is None:
        return Offloading(None, options)  # nobody says what would fit
    limit = free if wish.memory is not None else int(free * _SHARE)
    needed, largest = sum(sizes[n] for n in required), max((sizes[n] for n in required), default=0)
    told = f"{device} may use {limit / 1e9:.1f} GB, the components take about {needed / 1e9:.1f} GB"
    if wish.offload is Offload.AUTO and needed <= limit:
        kept = None if wish.memory is None else Budget(limit, 0, sizes, device=str(device))
        return Offloading(kept, options, f"{told}: all stay on it")
    if wish.offload is Offload.AUTO and largest <= limit:
        return Offloading(Budget(limit, 0, sizes, device=str(device)), options, f"{told}: they work in turn")
    if streams:
        budget = Budget(UNBOUNDED, 0, sizes, device=str(device), in_turn=True)
        streamed = replace(options, resident_weights=limit // 2)  # the other half is for what the work needs
        return Offloading(budget, streamed, f"{told}: weights are streamed in, {limit / 2e9:.1f} GB of them stay")
    name = max(required, key=lambda n: sizes[n])
    raise DeviceError(
        f"{name} alone needs about {sizes[name] / 1e9:.1f} GB on {device}, which may use {limit / 1e9:.1f} GB.",
        f"Compile it to int8-weights, place it elsewhere (--place {name}=cpu), or close other programs.",
    )
