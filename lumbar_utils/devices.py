"""Which device computes, in which precision, and why; the schedule and the averaged weights of a training.

`torch.cuda.is_available()` also says True on GPUs that the installed torch has no code for (a P100 with today's
Kaggle image), so a device is used only after it has computed something.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DataError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Compute:
    """A device and the precision to use on it."""

    device: torch.device
    dtype: torch.dtype  # float32 means no autocast
    reason: str  # why this device and this precision, for the log

    @property
    def scales_gradients(self) -> bool:
        """float16 gradients underflow without a scaler; bfloat16 has float32's range."""
        return self.dtype == torch.float16

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which to run the network."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Pick device (`auto`: the first usable GPU, else the CPU) and precision (of `PRECISIONS`); say why.

    Raises `DataError` when the wanted device is unknown or cannot compute, or the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise DataError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if device == "auto":
        chosen, reason = _automatic_device()
    else:
        try:
            chosen, reason = torch.device(device), "as requested"
        except RuntimeError as error:
            raise DataError(f"unknown device {device!r}, expected auto, cpu, cuda or cuda:1") from error
        issue = _issue_with(chosen)
        if issue:
            raise DataError(f"device {device!r} cannot be used: {issue}")
    if precision != "auto":
        return Compute(chosen, getattr(torch, precision), f"{reason}; {precision} as requested")
    dtype, why = _automatic_precision(chosen)
    return Compute(chosen, dtype, f"{reason}; {why}")


def _automatic_device() -> tuple[torch.device, str]:
    if not torch.cuda.is_available():
        return torch.device("cpu"), "no GPU is visible to torch"
    device = torch.device("cuda")
    issue = lack_of_code(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()) or _issue_with(device)
    if issue:
        return torch.device("cpu"), f"the GPU {torch.cuda.get_device_name()} cannot compute ({issue})"
    return device, torch.cuda.get_device_name()


def lack_of_code(capability: tuple[int, int], built_for: list[str]) -> str:
    """Why this torch, with `torch.cuda.get_arch_list()`, holds no code for a GPU, such as a P100, which is a (6, 0).

    "" when it does or does not say what it was built for. Code for `sm_75` runs on GPUs of the same major number from
    7.5 on; `compute_90` is compiled by the driver for any GPU from 9.0 on (CUDA C++ Programming Guide, binary and PTX
    compatibility).
    """
    found = (re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in built_for)
    targets = [(match[1], (int(match[2]), int(match[3]))) for match in found if match]
    if not targets or any(
        target <= capability and (kind == "compute" or target[0] == capability[0]) for kind, target in targets
    ):
        return ""
    oldest = min(target for _, target in targets)
    return (
        f"its compute capability is {capability[0]}.{capability[1]}, and torch {torch.__version__} is built for "
        f"{oldest[0]}.{oldest[1]} and newer; on Kaggle choose the accelerator GPU T4 x2"
    )


def _issue_with(device: torch.device) -> str:
    try:
        ones = torch.ones(1, 1, 4, 4, 4, device=device)
        float(torch.nn.functional.conv3d(ones, ones[..., :1, :1, :1]).sum())
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def _automatic_precision(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bfloat16"
        if major >= 7:
            return torch.float16, f"compute capability {major}.{minor} has fast float16 but no bfloat16"
        return torch.float32, f"compute capability {major}.{minor} has no fast half precision"
    if device.type == "cpu":
        if cpu_has_bfloat16():
            return torch.bfloat16, "the CPU has bfloat16 instructions"
        return torch.float32, "the CPU has no bfloat16 instructions"
    return torch.float32, f"no mixed precision is known for {device.type}"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 itself; elsewhere it is emulated and slower than float32."""
    # torch has no public name for this; the private ones may be absent.
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(test()) for test in tests if test is not None)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has held on a GPU since the process began, or that this process has held in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def warmup_cosine(progress: float, warmup: float, start: float, end: float) -> float:
    """The learning rate at a progress of 0 to 1, as a fraction of the highest: a linear rise, then half a cosine.

    `warmup` is the fraction of the training that the rise takes; `start` and `end` are the first and the last value.
    """
    if progress < warmup:
        return start + (1 - start) * progress / warmup
    fall = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * fall))


def running_average(decay: float) -> Callable:
    """`multi_avg_fn` of `AveragedModel`: an exponential average that forgets the first, random steps quickly."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: torch.Tensor) -> None:
        weight = 1 - min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
        if averaged[0].is_floating_point():
            # One call for all tensors: most are so small that a call for each costs more than its arithmetic.
            torch._foreach_lerp_(averaged, current, weight)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return update


def check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise `DataError` naming file and tensor when a number is not finite: such a network answers nothing."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DataError(f"{path}: {name} holds numbers that are not finite; neither saved nor loaded")
