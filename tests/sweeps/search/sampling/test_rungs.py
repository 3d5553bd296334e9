import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.findings.pareto import epsilon_net, non_dominated
from sweeps.search.sampling.rungs import Rungs, promotion_order, standard_error
from trainables.config.score import ExchangeRates

EPOCHS = 8  # with eta = 3 and a grace of 25 %: rungs after epochs 2 and 6
NUM_VAL = 5000
RATES = ExchangeRates(latency_points=1.0, size_points=0.5)


def report(
    rungs: Rungs,
    trial: str,
    accuracy: float,
    *,
    latency: float = 0.0,
    size: float = 0.0,
    step: int = 2,
    num_val: int = NUM_VAL,
    **more: Any,
) -> bool:
    fixed = {"latency": latency, "size": size}
    return rungs.report(trial, step=step, budget=EPOCHS, accuracy=accuracy, num_val=num_val, fixed=fixed, **more)


def test_a_dominated_slow_starter_is_stopped_at_the_first_rung_and_never_before() -> None:
    rungs = Rungs()
    good = [0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.9]
    assert not any(report(rungs, "good", accuracy, step=step) for step, accuracy in enumerate(good, start=1))
    assert [report(rungs, "bad", 0.1, latency=1, size=1, step=step) for step in (1, 2)] == [False, True]


def test_nobody_is_stopped_between_rungs_or_at_the_end() -> None:
    rungs = Rungs()
    for step in range(1, EPOCHS + 1):
        report(rungs, "good", 0.9, step=step)
    stopped = [step for step in range(1, EPOCHS + 1) if report(rungs, "bad", 0.1, latency=1, step=step)]
    assert stopped == [2, 6]


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.89])
def test_a_bigger_or_slower_model_never_stops_a_smaller_or_faster_one(accuracy: float) -> None:
    rungs = Rungs()
    for number in range(20):
        assert not report(rungs, f"big and fast {number}", 0.9, latency=0.0, size=1.0)
        assert not report(rungs, f"small and slow {number}", 0.9, latency=1.0, size=0.0)
    assert not report(rungs, "small and fast", accuracy, latency=0.5, size=0.5)


def test_a_lead_within_two_standard_errors_stops_nobody() -> None:
    leader = 0.9
    for num_val, lead in itertools.product((100, 1000, 10_000), (0.2, 1.0, 3.0)):
        follower = leader - lead * 2 * math.sqrt(2) * standard_error(leader, num_val)
        exact = 2 * math.hypot(standard_error(leader, num_val), standard_error(follower, num_val))
        rungs = Rungs()
        report(rungs, "leader", leader, num_val=num_val)
        stopped = report(rungs, "follower", follower, num_val=num_val)
        assert stopped == (leader - follower > exact), (num_val, lead)


def test_the_standard_error_of_ninety_percent_of_ten_thousand_is_three_tenths_of_a_point() -> None:
    assert standard_error(0.9, 10_000) == pytest.approx(0.003)
    assert standard_error(0.0, 7) == standard_error(1.0, 7) == 0.0


def test_who_is_among_the_kept_share_goes_on_even_if_beaten() -> None:
    rungs = Rungs(eta=2)
    for number in range(9):
        report(rungs, f"bad {number}", 0.1 + 0.001 * number, latency=5.0)
    report(rungs, "best", 0.9)
    assert not report(rungs, "second", 0.5, latency=1.0)


@pytest.mark.parametrize("eta", [2, 3])
def test_with_one_objective_it_is_asha(eta: int) -> None:
    """Separated curves: a trial goes on exactly if it is among the best floor(n / eta), at least one, so far."""
    rungs = Rungs(prices={"latency": 1.0, "size": 0.5}, eta=eta)
    accuracies = np.random.default_rng(0).permutation(np.linspace(0.05, 0.95, 30))
    for n, accuracy in enumerate(accuracies, start=1):
        better = (accuracies[: n - 1] > accuracy).sum()
        assert report(rungs, str(n), float(accuracy), num_val=10**9) == (better >= max(1, n // eta))


def test_with_one_objective_cheapness_counts_as_points() -> None:
    rungs = Rungs(prices={"latency": 10.0, "size": 0.0})
    report(rungs, "fast", 0.70, latency=-2.0)
    assert report(rungs, "accurate but slow", 0.85, latency=0.0)
    assert not report(rungs, "accurate", 0.85, latency=-1.0)


@pytest.mark.parametrize("eta", [2, 3])
def test_rungs_lie_at_fractions_of_the_budget_and_never_at_its_end(eta: int) -> None:
    assert Rungs(eta=eta).steps(24) == [6, 24 * eta // 4]
    for budget in range(200):
        steps = Rungs(eta=eta).steps(budget)
        assert all(0.25 * budget <= step < budget for step in steps)


def test_a_trial_is_stopped_by_others_that_have_got_no_further_in_their_budgets() -> None:
    rungs = Rungs()
    fixed = {"latency": 0.0}
    assert not rungs.report("long", step=4, budget=16, accuracy=0.8, num_val=NUM_VAL, fixed=fixed)
    assert rungs.report("short", step=2, budget=8, accuracy=0.5, num_val=NUM_VAL, fixed=fixed)
    assert rungs.report("rounded", step=3, budget=9, accuracy=0.5, num_val=NUM_VAL, fixed=fixed)
    assert not rungs.report("half", step=1, budget=2, accuracy=0.9, num_val=NUM_VAL, fixed=fixed)
    assert not rungs.report("quarter", step=2, budget=8, accuracy=0.8, num_val=NUM_VAL, fixed=fixed)
    assert rungs.report("half and bad", step=1, budget=2, accuracy=0.5, num_val=NUM_VAL, fixed=fixed)


@pytest.mark.parametrize("recovery", [12, 40, 96])
def test_the_first_epoch_after_pruning_is_a_rung_of_its_own_however_many_follow(recovery: int) -> None:
    rungs = Rungs()
    fixed = {"latency": 0.0}
    assert not rungs.report("good", step=13, budget=24, accuracy=0.8, num_val=NUM_VAL, fixed=fixed, milestone=True)
    step, budget = 13, 12 + recovery
    stops = rungs.report(
        "bad", step=step, budget=budget, accuracy=0.5, num_val=NUM_VAL, fixed={"latency": 1.0}, milestone=True
    )
    assert stops == (recovery <= 12), "only by a trial that has got no further"
    assert rungs.unsaved()[-1]["rung"] == "milestone"


def test_a_trial_that_comes_by_again_gets_the_same_answer_and_counts_once() -> None:
    rungs = Rungs()
    assert not report(rungs, "early", 0.5)
    assert not report(rungs, "good", 0.9)
    before = rungs.unsaved()
    assert not report(rungs, "early", 0.1), "the first record counts, and it was let through"
    assert rungs.unsaved() == before
    assert report(rungs, "bad", 0.2)
    assert report(rungs, "bad", 0.99), "it was stopped, whatever a second run gives"


def test_peers_are_compared_among_themselves() -> None:
    rungs = Rungs()
    report(rungs, "a", 0.9, peers="structured")
    assert not report(rungs, "b", 0.1, peers="l1_unstructured")
    assert report(rungs, "c", 0.1, peers="structured")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"eta": 1}, "eta=1"), ({"grace": 0.0}, "grace=0.0"), ({"grace": 1.0}, "grace=1.0")],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rungs(**changes)


def test_an_accuracy_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accuracy=90\.0"):
        report(Rungs(), "a", 90.0)


def test_the_epsilon_net_spreads() -> None:
    line = np.array([[0.0], [0.1], [0.2], [1.0], [0.5]])
    assert epsilon_net(line, 9) == [0, 3, 4, 2, 1]
    assert epsilon_net(np.zeros((3, 2)), 3) == [0, 1, 2]


def test_the_promotion_order_takes_front_after_front() -> None:
    values, costs = np.array([0.9, 0.5, 0.8, 0.4]), np.array([[2.0], [1.0], [3.0], [1.5]])
    assert promotion_order(values, costs, 4) == [0, 1, 2, 3]
    assert all(promotion_order(values, costs, count) == [0, 1, 2, 3][:count] for count in (1, 2, 3))


candidates = st.lists(st.tuples(st.floats(0.05, 0.95), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25)


@given(candidates, st.sampled_from([2, 3]), st.floats(0.1, 1.0), st.booleans())
def test_no_member_of_the_final_front_is_stopped_when_curves_keep_their_order(
    finals: list[tuple[float, int, int]], eta: int, slope: float, free: bool
) -> None:
    """Curves a * final, where a grows to 1: any order of arrival, with latency and size compared or paid for."""
    prices = {"latency": 3.0, "size": 1.0} if free else {}
    rungs = Rungs(prices=prices, eta=eta)
    stopped = set()
    for number, (final, latency, size) in enumerate(finals):
        for step in range(1, EPOCHS + 1):
            if free:  # parallel in the score: all lose the same
                accuracy = max(0.0, final - 0.05 * slope * (1 - step / EPOCHS))
            else:
                accuracy = final * (slope + (1 - slope) * step / EPOCHS)
            if report(rungs, str(number), accuracy, latency=latency, size=size, step=step):
                stopped.add(number)
                break
    points = np.array([(-100 * final, latency, size) for final, latency, size in finals])
    if free:
        points = points @ np.array([[1.0], [3.0], [1.0]])
    assert not stopped & set(np.flatnonzero(non_dominated(points)))


@given(candidates, st.randoms(use_true_random=False))
def test_what_is_recorded_does_not_depend_on_the_order_nor_does_the_last_decision(
    finals: list[tuple[float, int, int]], random: Any
) -> None:
    def run(order: list[int]) -> tuple[bool, Any]:
        rungs = Rungs()
        for number in order:
            accuracy, latency, size = finals[number]
            report(rungs, str(number), accuracy, latency=latency, size=size)
        last = report(rungs, "last", 0.5, latency=2, size=2)
        return last, {row["trial"]: (row["accuracy"], row["fixed"]) for row in rungs.unsaved() if row["rung"] == "1/4"}

    order = list(range(len(finals)))
    shuffled = order.copy()
    random.shuffle(shuffled)
    assert run(order) == run(shuffled)


@given(candidates)
def test_what_is_recorded_survives_json(finals: list[tuple[float, int, int]]) -> None:
    rungs, again = Rungs(), Rungs()
    for number, (accuracy, latency, size) in enumerate(finals):
        report(rungs, str(number), accuracy, latency=latency, size=size)
    rows = rungs.unsaved()
    again.restore(json.loads(json.dumps([*rows, *rows[-1:]])))  # a line that was written twice
    assert not again.unsaved()
    assert [again.has_stopped(row["trial"]) for row in rows] == [row["beaten_by"] is not None for row in rows]
    for accuracy in (0.01, 0.5):
        assert report(again, f"new {accuracy}", accuracy) == report(rungs, f"new {accuracy}", accuracy)
