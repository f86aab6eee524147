"""Being on time: how much of an ensemble a run can still afford, decided again before every batch.

A run has so many seconds for so many studies. `TimeGuard` is told what each batch took and says how the next one is to
be graded: with everything; without the mirrored studies; with ever fewer networks, the one of least weight going first;
and when even that would be late, not at all. It only ever steps down, so that a log of its steps tells the whole story.
Pure arithmetic on a clock that may be given; it neither reads nor grades.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

HOURS = 9.0
"""What a Kaggle submission may take."""
RESERVE_SHARE = 0.03
"""Share of the budget that is kept for writing, and for what the forecast cannot know: 16 minutes of 9 hours."""
SLOWEST_OF_MEDIAN = 3.0
"""A batch counts in the forecast with at most this many times the median: one study that hung for minutes is time that
is gone, but says little about the studies to come."""
BATCHES_REMEMBERED = 32
EARLIEST = 0.2
"""Share of the budget in which nothing is given up on the word of the first batch alone: it has loaded networks and
started processes, and is no measure of the others."""
MIN_GAIN = 0.02
"""What all steps down together must save of the time still needed; less is not worth a network."""


@dataclass(frozen=True)
class Plan:
    """How a batch is graded.

    Attributes
    ----------
    mirror : bool
        Whether mirrored studies are graded too.
    members : tuple of int
        Which networks of the ensemble, ascending.
    """

    mirror: bool
    members: tuple[int, ...]

    def __str__(self) -> str:
        networks = "1 network" if len(self.members) == 1 else f"{len(self.members)} networks"
        return f"{networks}, {'with' if self.mirror else 'without'} mirrored studies"


def plans(shares: Sequence[float], mirror: bool) -> tuple[Plan, ...]:
    """From everything down to the one network of most weight; of equal weights the last one goes first."""
    members = list(range(len(shares)))
    ladder = [Plan(True, tuple(members))] if mirror else []
    ladder.append(Plan(False, tuple(members)))
    for member in sorted(members, key=lambda i: (shares[i], -i))[:-1]:
        members.remove(member)
        ladder.append(Plan(False, tuple(members)))
    return tuple(ladder)


@dataclass(frozen=True)
class Step:
    """A decision: at which second of the run, before which study, from which plan to which, and why.

    `after` is None where the time had run out.
    """

    seconds: float
    study: int
    before: Plan
    after: Plan | None
    reason: str


class TimeGuard:
    """Keeps a run inside its time.

    Parameters
    ----------
    seconds : float
        The whole budget, counted from `started`.
    n_studies : int
        How many are to be graded.
    shares : sequence of float
        The weights of the ensemble's networks.
    mirror : bool
        Whether mirrored studies are graded as long as there is time.
    clock : callable
        Seconds on any scale that does not jump.
    started : float, optional
        The clock's value when the budget began; default now.

    Attributes
    ----------
    plan : Plan or None
        The one in force; None when the time has run out.
    steps : list of Step
        What was decided so far.

    Raises `DataError` when the budget is not a positive number.
    """

    def __init__(
        self,
        seconds: float,
        n_studies: int,
        *,
        shares: Sequence[float] = (1.0,),
        mirror: bool = False,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ):
        if not (np.isfinite(seconds) and seconds > 0):
            raise DataError(f"a time budget must be a positive number of seconds, got {seconds}")
        self.seconds, self.n_studies, self._clock = float(seconds), n_studies, clock
        self.started = clock() if started is None else started
        self.reserve = RESERVE_SHARE * self.seconds
        self._ladder = plans(shares, mirror)
        self.plan: Plan | None = self._ladder[0]
        self.steps: list[Step] = []
        self._done = 0
        self._batches: deque[tuple[float, float]] = deque(maxlen=BATCHES_REMEMBERED)
        self._warm = False
        self._member_seconds = np.ones(len(shares))
        self._measured = np.zeros(len(shares), dtype=bool)

    @property
    def elapsed(self) -> float:
        """Seconds since the budget began."""
        return self._clock() - self.started

    def left(self) -> float:
        """Seconds until the reserve begins; negative when it has."""
        return self.seconds - self.reserve - self.elapsed

    def observe(self, n: int, waited: float, graded: float, member_seconds: Sequence[float] = ()) -> None:
        """Note what a batch took, graded by the plan in force.

        Parameters
        ----------
        n : int
            Studies in the batch.
        waited, graded : float
            Seconds until its studies were read and cropped, and seconds that the networks took.
        member_seconds : sequence of float, optional
            For each network of the ensemble the seconds of one study and one pass; nan where it was not asked. Networks
            that were never measured count as the mean of the others.
        """
        self._done += n
        if n == 0 or self.plan is None:
            return
        if not self._warm and self._batches:  # the first batch stood in only until there was a better measure
            self._batches.clear()
            self._warm = True
        self._batches.append((waited / n, graded / n))
        for i, seconds in enumerate(member_seconds):
            if np.isfinite(seconds) and seconds > 0:
                old = self._member_seconds[i] if self._measured[i] and self._warm else seconds
                self._member_seconds[i], self._measured[i] = 0.7 * old + 0.3 * seconds, True
        if self._measured.any():
            self._member_seconds[~self._measured] = self._member_seconds[self._measured].mean()

    def forecast(self, plan: Plan, n_ready: int = 0) -> float:
        """Seconds that the studies still to come would take by that plan, `n_ready` of them read already; 0 when
        nothing was measured."""
        if not self._batches or self.plan is None:
            return 0.0
        waited, graded = self._pace()
        remaining = self.n_studies - self._done
        share = self._cost(plan) / self._cost(self.plan)
        return max(remaining - n_ready, 0) * waited + max(remaining, 0) * graded * share

    def decide(self, n_ready: int) -> Plan | None:
        """The plan for a batch of `n_ready` studies that are ready to be graded; None: there is no time for it."""
        if self.plan is None:
            return None
        left = self.left()
        waited, graded = self._pace() if self._batches else (0.0, 0.0)
        cheapest = self._ladder[-1]
        quickest = n_ready * graded * self._cost(cheapest) / self._cost(self.plan)
        if left <= 0 or quickest > left + self.reserve / 2:
            self._step(None, f"{max(left + self.reserve, 0):.0f} s are left of {self.seconds:.0f} s")
            return None
        if not self._warm and self.elapsed < EARLIEST * self.seconds:
            return self.plan
        needed = self.forecast(self.plan, n_ready)
        if needed > left and needed - self.forecast(cheapest, n_ready) > MIN_GAIN * needed:
            below = self._ladder[self._ladder.index(self.plan) + 1 :]
            fitting = (plan for plan in below if self.forecast(plan, n_ready) <= left)
            self._step(
                next(fitting, cheapest),
                f"{self.n_studies - self._done} studies need {needed:.0f} s at {waited + graded:.2f} s each, and "
                f"{left:.0f} s are left",
            )
        return self.plan

    def give_up(self) -> None:
        """Note that the time ran out while waiting for studies; nothing is graded from now on."""
        if self.plan is not None:
            self._step(None, f"{max(self.left() + self.reserve, 0):.0f} s are left of {self.seconds:.0f} s")

    def _step(self, plan: Plan | None, reason: str) -> None:
        assert self.plan is not None
        if plan is None or self.plan.members != plan.members or self.plan.mirror != plan.mirror:
            self.steps.append(Step(self.elapsed, self._done, self.plan, plan, reason))
            if plan is not None:  # times of grading were those of the old plan
                share = self._cost(plan) / self._cost(self.plan)
                self._batches = deque(((w, g * share) for w, g in self._batches), maxlen=BATCHES_REMEMBERED)
            self.plan = plan

    def _cost(self, plan: Plan) -> float:
        return float(self._member_seconds[list(plan.members)].sum()) * (2 if plan.mirror else 1)

    def _pace(self) -> tuple[float, float]:
        """Seconds a study that a batch waits and is graded, outliers cut."""
        both = np.array(self._batches)
        limit = SLOWEST_OF_MEDIAN * np.median(both.sum(axis=1))
        scale = np.minimum(1.0, limit / np.maximum(both.sum(axis=1), 1e-9))
        waited, graded = (both * scale[:, None]).mean(axis=0)
        return float(waited), float(graded)
