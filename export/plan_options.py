"""What a plan is built with: one set of choices for both libraries, and a reason where one of them lacks a choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import UsageError
from ..runtimes.cuda import find_gpus

FLAVOURS = ("tensorrt-rtx", "tensorrt")
PRECISIONS = ("float32", "float16", "bfloat16")
# of HardwareCompatibilityLevel's members, as the command line calls them
COMPATIBILITY = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
LEVELS = range(6)  # IBuilderConfig.builder_optimization_level
# "By default, an engine built by TensorRT-RTX can be run on GPU devices with compute capability 8.0, 8.6, 8.9, 12.0,
# and later": docs.nvidia.com/deeplearning/tensorrt-rtx, CPU-Only AOT and TensorRT-RTX Engines
DEFAULT_TARGET = "8.0+"
FP8_TARGET = "8.9+"  # the library's own word for older ones: "the model contains HW-specific datatypes: fp8_e4m3"
# what TensorRT-RTX 1.7 does with each: read off its messages, and off plans that come out byte for byte the same
_NOT_RTX = {
    "hardware_compatible": "its plans run on every GPU that they were built for: use --compute-capability",
    "timing_cache": "it times no kernels while it builds; what it makes where a plan runs is kept with -O cache=yes",
    "optimization_level": "it has one level, and the option would change nothing: leave it out",
}


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built.

    precision: what floats are computed in; float16 leaves a VAE in float32, whose pictures would be black.
    compute_capability: the GPUs to build for, such as "8.6,8.9". None: what the library does by itself, which is 8.0
        and newer for TensorRT-RTX and this machine's first GPU for TensorRT.
    refit: weights can be changed when the plan is opened; needs a GPU to build.
    strip: as refit, and the plan is without weights, which it takes from the model's files.
    apart: weights are inputs of the plan, which takes them from the model's files; needs no GPU to build.
    weight_streaming: a part of the weights may stay in the computer's memory, see `Options.resident_weights`.
    hardware_compatible: one of `COMPATIBILITY`; of TensorRT alone.
    timing_cache: keep how quick each kernel was for the next build; of TensorRT alone, where None is yes.
    optimization_level: 0 to 5, of TensorRT alone; None: its own.
    workspace: bytes of the GPU that a layer may use while it computes; None: the library's limit.
    """

    precision: str = "float32"
    compute_capability: str | None = None
    refit: bool = False
    strip: bool = False
    apart: bool = False
    weight_streaming: bool = False
    hardware_compatible: str = "none"
    timing_cache: bool | None = None
    optimization_level: int | None = None
    workspace: int | None = None

    def named(self, precision: str | None, compute_capability: str | None) -> PlanOptions:
        """The same with these two, where they are given."""
        return replace(
            self,
            precision=precision or self.precision,
            compute_capability=compute_capability or self.compute_capability,
        )

    def check(self, flavour: str) -> None:
        """Refuse what the library lacks, and choices that contradict each other.

        Raises:
            UsageError: names the choice and why.
        """
        if flavour not in FLAVOURS:
            raise UsageError(f"There is no {flavour!r}.", f"Give {' or '.join(FLAVOURS)}.")
        if self.precision not in PRECISIONS:
            names = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            raise UsageError(f"A plan computes in {names}, not {self.precision}.", "Give one of them.")
        if self.hardware_compatible not in COMPATIBILITY:
            raise UsageError(
                f"hardware-compatible is {self.hardware_compatible!r}.", f"Give {', '.join(COMPATIBILITY)}."
            )
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise UsageError(f"optimization-level is {self.optimization_level}.", "Give 0 to 5.")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace is {self.workspace}.", "Give a number of bytes.")
        if self.apart and (self.refit or self.strip or self.weight_streaming):
            other = "strip" if self.strip else "refit" if self.refit else "weight-streaming"
            raise UsageError(
                f"--apart takes the weights out of the plan, so --{other} has none to work on.", "Give one of the two."
            )
        if flavour == "tensorrt-rtx":
            for name, why in _NOT_RTX.items():
                if getattr(self, name) != getattr(PlanOptions(), name):
                    raise UsageError(f"TensorRT-RTX has no --{name.replace('_', '-')}.", f"{why[0].upper()}{why[1:]}.")

    @property
    def keeps(self) -> str:
        """Where the weights are: "inside" the plan, or "refit", "strip" or "apart"."""
        return "strip" if self.strip else "refit" if self.refit else "apart" if self.apart else "inside"

    def flags(self) -> list[str]:
        """BuilderFlag's members that are set. REFIT_INDIVIDUAL: the weights that were marked, and no constants."""
        found = ["REFIT_INDIVIDUAL"] if self.refit or self.strip else []
        found += ["STRIP_PLAN"] if self.strip else []
        return found + (["WEIGHT_STREAMING"] if self.weight_streaming else [])

    def arguments(self) -> list[str]:
        """What `vitrify compile` is given for the same plan."""
        given = [] if self.precision == "float32" else ["--precision", self.precision]
        given += [] if self.compute_capability is None else ["--compute-capability", self.compute_capability]
        for name in ("refit", "strip", "apart", "weight_streaming"):
            given += [f"--{name.replace('_', '-')}"] if getattr(self, name) else []
        given += [] if self.hardware_compatible == "none" else ["--hardware-compatible", self.hardware_compatible]
        given += ["--no-timing-cache"] if self.timing_cache is False else []
        given += [] if self.optimization_level is None else ["--optimization-level", str(self.optimization_level)]
        return given + ([] if self.workspace is None else ["--workspace", str(self.workspace)])


def target_of(trt: Any, flavour: str, options: PlanOptions, fp8: bool) -> str:
    """What the manifest says of the GPUs: see `runtimes.trt.fits`. fp8: the graph holds such weights.

    Raises:
        UsageError: no such compute capability, or none that has fp8.
        DeviceError: TensorRT builds on a GPU only, and there is none.
    """
    given = options.compute_capability
    if flavour == "tensorrt":
        own = "{}.{}".format(*find_gpus()[0].capability)
        if given not in (None, own):
            raise UsageError(f"TensorRT builds for its own GPU, {own}, not for {given}.", "Build it where it will run.")
        return DEFAULT_TARGET if options.hardware_compatible == "ampere+" else own
    if given is None:
        return FP8_TARGET if fp8 else DEFAULT_TARGET
    known = [n.removeprefix("SM") for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
    wanted = [part.strip() for part in given.split(",")]
    if not all(part.replace(".", "") in known and part[-2:-1] == "." for part in wanted):
        have = ", ".join(f"{n[:-1]}.{n[-1]}" for n in known)
        raise UsageError(f"{given} is no compute capability that TensorRT-RTX builds for.", f"They are {have}.")
    older = [part for part in wanted if tuple(map(int, part.split("."))) < (8, 9)]
    if fp8 and older:
        raise UsageError(f"GPUs of compute capability {', '.join(older)} have no fp8.", "Give 8.9 or newer ones.")
    return ",".join(dict.fromkeys(wanted))


def configure(trt: Any, config: Any, flavour: str, options: PlanOptions, target: str) -> None:
    """Set a builder's configuration."""
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it would compute float32 with 10 bits of mantissa
    for flag in options.flags():
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if flavour == "tensorrt-rtx":
        if not target.endswith("+"):
            names = [f"SM{part.replace('.', '')}" for part in target.split(",")]
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        return
    config.hardware_compatibility_level = getattr(
        trt.HardwareCompatibilityLevel, COMPATIBILITY[options.hardware_compatible]
    )
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
