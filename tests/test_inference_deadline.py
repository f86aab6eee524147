"""The time guard, on a clock that only moves when work is done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.inference.deadline import Deadline, Plan, plans

SHARES = (0.5, 0.2, 0.3)


@dataclass
class Work:
    """A run on a fake clock: what reading a study, and a pass of each network over it, take in seconds."""

    budget: float
    n_studies: int
    read: float
    networks: tuple[float, ...] = (1.0, 1.0, 1.0)
    mirror: bool = True
    warm_up: float = 0.0
    hangs: dict = field(default_factory=dict)
    parallel: bool = False
    batch: int = 8
    now: float = 0.0

    def run(self) -> Deadline:
        guard = Deadline(
            self.budget, self.n_studies, weights=SHARES, mirror=self.mirror, clock=lambda: self.now, started=0.0
        )
        self.plans, self.graded, behind = [], 0, 0.0
        for first in range(0, self.n_studies, self.batch):
            n = min(self.batch, self.n_studies - first)
            waited = n * self.read + sum(self.hangs.get(i, 0.0) for i in range(first, first + n))
            waited += self.warm_up if first == 0 else 0.0
            if self.parallel:  # read while the batch before was graded
                waited = max(waited - behind, 0.0)
            if guard.left() <= 0:
                guard.give_up()
            else:
                self.now += min(waited, max(guard.left(), 0))  # as `preprocess_studies` waits
            plan = guard.decide(n)
            took, each = 0.0, np.full(len(SHARES), np.nan)
            if plan is not None:
                for member in plan.members:
                    each[member] = self.networks[member]
                took = n * sum(self.networks[m] for m in plan.members) * (2 if plan.mirror else 1)
                self.graded += n
            self.now += took
            behind = took
            self.plans.append(plan)
            guard.observe(n, waited, took, each)
        return guard


def test_mirrors_go_first_then_networks_of_least_weight():
    assert plans(SHARES, True) == (
        Plan(True, (0, 1, 2)),
        Plan(False, (0, 1, 2)),
        Plan(False, (0, 2)),
        Plan(False, (0,)),
    )
    assert plans((0.5, 0.5), False) == (Plan(False, (0, 1)), Plan(False, (0,)))


def test_with_time_enough_nothing_is_given_up():
    work = Work(budget=9 * 3600, n_studies=720, read=2.0, warm_up=300)
    assert not work.run().steps and work.graded == 720


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("share", "last"),
    # All need 2 s to read, and 6, 3, 2 or 1 s to grade.
    [(0.9, Plan(False, (0, 1, 2))), (0.58, Plan(False, (0, 2))), (0.46, Plan(False, (0,)))],
)
def test_it_gives_up_as_little_as_needed_in_time(share, last, parallel):
    needed = 720 * (6 if parallel else 8)
    work = Work(budget=share * needed, n_studies=720, read=0.1 if parallel else 2.0, parallel=parallel)
    if parallel:
        last = {0.9: Plan(False, (0, 1, 2)), 0.58: Plan(False, (0, 1, 2)), 0.46: Plan(False, (0, 2))}[share]
    guard = work.run()
    assert work.graded == 720, "everything was graded"
    assert work.now <= work.budget
    assert work.plans[-1] == last
    assert guard.steps[0].study <= 0.05 * 720, "it reacted early"
    assert "720" not in guard.steps[0].reason and "need" in guard.steps[0].reason


def test_it_only_steps_down():
    work = Work(budget=720 * 4.2, n_studies=720, read=2.0, hangs={300: 200.0, 500: 200.0})
    work.run()
    cost = [0.0 if p is None else len(p.members) * (2 if p.mirror else 1) for p in work.plans]
    assert cost == sorted(cost, reverse=True)


def test_a_slow_start_frightens_nobody():
    """Loading networks and starting processes takes a twentieth of the time: at that pace nothing would be ready."""
    work = Work(budget=720 * 8 * 1.3, n_studies=720, read=2.0, warm_up=500.0)
    assert not work.run().steps


def test_one_study_that_hangs_is_no_measure_of_the_others():
    work = Work(budget=720 * 8 * 1.3, n_studies=720, read=2.0, hangs={100: 300.0})
    assert not work.run().steps
    # But where that time is really missing, it is made up for.
    work = Work(budget=720 * 8 * 1.04, n_studies=720, read=2.0, hangs={100: 300.0})
    guard = work.run()
    assert guard.steps and guard.plan == Plan(False, (0, 1, 2)) and work.graded == 720 and work.now <= work.budget


def test_when_reading_alone_is_too_slow_what_is_left_gets_the_prior_in_time():
    work = Work(budget=720, n_studies=720, read=2.0)
    guard = work.run()
    assert guard.plan is None and guard.steps[-1].after is None
    assert work.now <= work.budget
    # The cheapest plan takes 3 s a study: nearly as many are graded as can be.
    assert 0.85 * 720 / 3 < work.graded < 720 / 3
    assert work.plans[-1] is None and Plan(False, (0,)) in work.plans


def test_networks_are_not_given_up_for_nothing():
    """Reading takes all the time, in other processes: without the networks the run would be as late."""
    work = Work(budget=720, n_studies=720, read=2.0, networks=(1e-3,) * 3, parallel=True)
    guard = work.run()
    assert [step.after for step in guard.steps] == [None]
    assert work.now <= work.budget


def test_networks_of_different_cost():
    """The network of least weight takes most of the time: without it there is enough."""
    work = Work(budget=300 * 4.5, n_studies=300, read=1.0, networks=(1.0, 6.0, 1.0), mirror=False)
    guard = work.run()
    assert work.graded == 300 and guard.plan == Plan(False, (0, 2)) and work.now <= work.budget


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_none(seconds):
    with pytest.raises(DataError, match="positive"):
        Deadline(seconds, 3)


def test_nothing_to_grade():
    guard = Deadline(10, 0, clock=lambda: 0.0)
    guard.observe(0, 0.0, 0.0)
    assert guard.decide(0) is not None and not guard.steps
