"""Finishing in time: how much of an ensemble a run can still afford, decided again before every batch.

A run has so many seconds for so many studies. `Deadline` is given what each batch took and decides how the next one is
predicted: with everything; without the mirrored studies; with ever fewer ensemble members, the one of least weight
dropped first; and when even that would be late, not at all. It only ever steps down, so that a log of its steps is
complete. Pure arithmetic on a clock that may be given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

HOURS = 9.0
"""What a Kaggle submission may take."""
RESERVE = 0.03
"""Fraction of the time that is kept for writing, and for what the forecast cannot know: 16 minutes of 9 hours."""
OUTLIER = 3.0
"""A batch counts in the forecast with at most this many times the median: one study that hung for minutes is time that
is gone, but says little about the studies to come."""
RECENT_BATCHES = 32
EARLIEST = 0.2
"""Fraction of the time in which nothing is dropped because of the first batch alone: it has loaded networks and started
processes, and does not represent the others."""
MIN_GAIN = 0.02
"""What all steps down together must save of the time still needed; less is not worth an ensemble member."""


@dataclass(frozen=True)
class Plan:
    """How a batch is predicted: whether with its mirrored studies too, and by which members (indices, ascending)."""

    mirror: bool
    members: tuple[int, ...]


def plans(weights: Sequence[float], mirror: bool) -> tuple[Plan, ...]:
    """From everything down to the one member of most weight; of equal weights the last one is dropped first."""
    members = list(range(len(weights)))
    ladder = [Plan(True, tuple(members))] if mirror else []
    ladder.append(Plan(False, tuple(members)))
    for member in sorted(members, key=lambda i: (weights[i], -i))[:-1]:
        members.remove(member)
        ladder.append(Plan(False, tuple(members)))
    return tuple(ladder)


@dataclass(frozen=True)
class Step:
    """A decision: at which second of the run, before which study, from which plan to which, and why."""

    seconds: float
    study: int
    before: Plan
    after: Plan | None  # None where the time had run out
    reason: str


class Deadline:
    """Keeps a run inside its time, `seconds` from `started` on (default: now) by a clock that does not jump.

    `weights` are those of the ensemble; `mirror` says whether mirrored studies are predicted as long as there is time.
    `plan` is the current one, None when the time has run out, and `steps` what was decided so far. Raises `DataError`
    when the time is not a positive number.
    """

    def __init__(
        self,
        seconds: float,
        n_studies: int,
        *,
        weights: Sequence[float] = (1.0,),
        mirror: bool = False,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ):
        if not (np.isfinite(seconds) and seconds > 0):
            raise DataError(f"a run's time must be a positive number of seconds, got {seconds}")
        self.seconds, self.n_studies, self._clock = float(seconds), n_studies, clock
        self.started = clock() if started is None else started
        self._ladder = plans(weights, mirror)
        self.plan: Plan | None = self._ladder[0]
        self.steps: list[Step] = []
        self._done = 0
        self._batches: list[tuple[float, float]] = []  # seconds a study: waited; predicted, divided by the plan's cost
        self._member_seconds = np.full(len(weights), np.nan)

    @property
    def elapsed(self) -> float:
        """Seconds since the time began."""
        return self._clock() - self.started

    def left(self) -> float:
        """Seconds until the reserve begins; negative when it has."""
        return (1 - RESERVE) * self.seconds - self.elapsed

    def observe(self, n: int, waited: float, predicted: float, member_seconds: Sequence[float] = ()) -> None:
        """Note a batch of `n` studies: seconds waited for it, and seconds in which the current plan predicted it.

        `member_seconds`: of one study and one pass, nan for members not used; those never measured count as the mean.
        """
        self._done += n
        if n == 0 or self.plan is None:
            return
        new = np.array(member_seconds, dtype=float) if len(member_seconds) else self._member_seconds
        old = self._member_seconds if len(self._batches) > 1 else new
        self._member_seconds = np.where(new > 0, np.where(old > 0, 0.7 * old + 0.3 * new, new), self._member_seconds)
        self._batches.append((waited / n, predicted / n / self._cost(self.plan)))

    def forecast(self, plan: Plan, n_ready: int = 0) -> float:
        """Seconds that the remaining studies would take by that plan, `n_ready` of them read already; 0 when nothing
        was measured."""
        waited, unit = self._pace()
        remaining = max(self.n_studies - self._done, 0)
        return max(remaining - n_ready, 0) * waited + remaining * unit * self._cost(plan)

    def decide(self, n_ready: int) -> Plan | None:
        """The plan for a batch of `n_ready` studies that are ready to be predicted; None: there is no time for it."""
        if self.plan is None:
            return None
        left, cheapest = self.left(), self._ladder[-1]
        waited, unit = self._pace()
        if left <= 0 or n_ready * unit * self._cost(cheapest) > left + RESERVE * self.seconds / 2:
            self.give_up()
            return None
        if len(self._batches) < 2 and self.elapsed < EARLIEST * self.seconds:
            return self.plan
        needed = self.forecast(self.plan, n_ready)
        if needed > left and needed - self.forecast(cheapest, n_ready) > MIN_GAIN * needed:
            below = self._ladder[self._ladder.index(self.plan) + 1 :]
            fitting = next((plan for plan in below if self.forecast(plan, n_ready) <= left), cheapest)
            each = waited + unit * self._cost(self.plan)
            count = self.n_studies - self._done
            self._step(fitting, f"{count} studies need {needed:.0f} s at {each:.2f} s each, and {left:.0f} s are left")
        return self.plan

    def give_up(self) -> None:
        """Note that the time ran out: nothing is predicted from now on."""
        self._step(None, f"{max(self.seconds - self.elapsed, 0):.0f} s are left of {self.seconds:.0f} s")

    def _step(self, plan: Plan | None, reason: str) -> None:
        if self.plan is not None and plan != self.plan:
            self.steps.append(Step(self.elapsed, self._done, self.plan, plan, reason))
            self.plan = plan

    def _cost(self, plan: Plan) -> float:
        """Seconds of the plan's passes over one study, as far as measured."""
        known = self._member_seconds > 0
        mean = self._member_seconds[known].mean() if known.any() else 1.0
        seconds = np.where(known, self._member_seconds, mean)
        return float(seconds[list(plan.members)].sum()) * (2 if plan.mirror else 1)

    def _pace(self) -> tuple[float, float]:
        """Seconds a study that a batch waits, and seconds of prediction per unit of cost; outliers are cut."""
        if not self._batches or self.plan is None:
            return 0.0, 0.0
        recent = np.array(self._batches[1:][-RECENT_BATCHES:] or self._batches)
        each = recent @ (1.0, self._cost(self.plan))
        scale = np.minimum(1.0, OUTLIER * np.median(each) / np.maximum(each, 1e-9))
        waited, unit = (recent * scale[:, None]).mean(axis=0)
        return float(waited), float(unit)
