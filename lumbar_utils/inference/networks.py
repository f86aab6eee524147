"""The networks of an ensemble on one device or several, and what each of them predicts for a batch of studies.

On several devices every one holds a copy of all networks, and a batch is dealt out over them; two threads drive two
GPUs, because torch lets go of Python while a GPU computes.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from ..devices import Compute, choose_compute
from ..errors import DataError
from ..labels import N_SEVERITIES, N_TARGETS
from ..models.classifier import LumbarClassifier, predict_probabilities
from ..models.inputs import StudyInput
from .deadline import Plan

logger = logging.getLogger(__name__)


def choose_devices(device: str | Sequence[str] | None = None, precision: str = "auto") -> tuple[Compute, ...]:
    """The devices to predict on, as for `devices.choose_compute`.

    Several are named as a sequence or with commas between them (`cuda:0,cuda:1`). Default and `auto`: all GPUs that can
    compute, else the CPU. `cuda` alone is the first GPU. Raises `DataError` when a device that is named is unknown or
    cannot compute, or none is named.
    """
    names = device.split(",") if isinstance(device, str) else list(device or ("auto",))
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DataError(f"no device is named in {device!r}, expected for example cpu, cuda or cuda:0,cuda:1")
    if names != ["auto"]:
        return tuple(choose_compute(name, precision) for name in names)
    first = choose_compute("auto", precision)
    if first.device.type != "cuda":
        return (first,)
    found = []
    for number in range(torch.cuda.device_count()):
        try:
            found.append(choose_compute(f"cuda:{number}", precision))
        except DataError as error:
            logger.warning("not used: %s", error)
    return tuple(found) or (first,)


class Networks:
    """An ensemble's networks, moved to the first of the devices and copied to the others.

    Of the last `predict`, `seconds` (n_members,) are those of one study and one pass, and `unlike` (n_members,
    n_studies) tells how unlike its training data each network finds the studies; nan where it does not.
    """

    def __init__(self, models: Sequence[LumbarClassifier], computes: Sequence[Compute]):
        self.computes = tuple(computes)
        first, *others = (compute.device for compute in self.computes)
        copies = [tuple(copy.deepcopy(model).to(device) for model in models) for device in others]
        self._copies = (tuple(model.to(first) for model in models), *copies)
        self.seconds, self.unlike = np.full(len(models), np.nan), np.full((len(models), 0), np.nan)

    @property
    def models(self) -> tuple[LumbarClassifier, ...]:
        """Those on the first device."""
        return self._copies[0]

    def __len__(self) -> int:
        return len(self.models)

    def predict(
        self, inputs: Sequence[Sequence[StudyInput]], inputs_of: Sequence[int], plan: Plan, batch_size: int
    ) -> np.ndarray:
        """Every network's prediction, float64 (n_members, n_studies, 25, 3), nan where the plan does not use it.

        `inputs` are the same studies cut by each specification of crops, and `inputs_of` tells of each network by which
        of them it was trained. A device takes `batch_size` studies at a time.
        """
        n = len(inputs[0]) if inputs else 0
        result = np.full((len(self), n, N_TARGETS, N_SEVERITIES), np.nan)
        self.seconds, self.unlike = np.full(len(self), np.nan), np.full((len(self), n), np.nan)
        if n == 0:
            return result
        bounds = np.linspace(0, n, min(len(self.computes), n) + 1).round().astype(int)
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        seconds = np.full((len(parts), len(self)), np.nan)

        def on_device(number: int, part: slice) -> None:
            compute = self.computes[number]
            for member in plan.members:
                started = time.perf_counter()
                model, given = self._copies[number][member], inputs[inputs_of[member]][part]
                options = {"batch_size": batch_size, "mirror": plan.mirror, "unlike": self.unlike[member, part]}
                result[member, part] = predict_probabilities(model, given, compute, **options)
                seconds[number, member] = time.perf_counter() - started

        if len(parts) == 1:
            on_device(0, parts[0])
        else:
            with ThreadPoolExecutor(len(parts)) as threads:
                list(threads.map(on_device, range(len(parts)), parts))
        self.seconds = seconds.max(axis=0) / (2 * n if plan.mirror else n)  # of the slowest device
        return result
