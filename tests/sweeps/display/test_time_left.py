import pytest

from sweeps.display.durations import Range
from sweeps.display.time_left import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pace(*, concurrency: int = 1, stops: bool = False, labels_s: float = 0.0) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(concurrency=concurrency, stops=stops, labels_s=lambda: labels_s, now=clock), clock


def whole(pace: Pace, clock: Clock, name: str, *, epoch_s: float, rest_s: float, epochs: int = 4) -> None:
    """A trial from start to end, of 4 epochs if it is not stopped, its other seconds before them."""
    pace.began(name)
    clock.now += rest_s
    pace.reported(name)
    for step in range(1, epochs + 1):
        clock.now += epoch_s
        pace.epoch(name, step=step, steps=4)
    pace.ended(name)


def test_nothing_is_said_before_anything_is_known() -> None:
    fresh, clock = pace()
    assert fresh.left(5) is None
    fresh.began("a")
    clock.now += 100
    assert fresh.left(5) is None


def test_nothing_left_takes_no_time() -> None:
    assert pace()[0].left(0) == Range(0, 0, 0)


@pytest.mark.parametrize(("concurrency", "trials", "rounds"), [(1, 5, 5), (2, 5, 3), (2, 6, 3), (8, 5, 1)])
def test_equal_trials_take_as_many_rounds_as_there_are(concurrency: int, trials: int, rounds: int) -> None:
    known, clock = pace(concurrency=concurrency)
    for name in "abc":
        whole(known, clock, name, epoch_s=10, rest_s=2)
    assert known.left(trials) == Range(rounds * 42, rounds * 42, rounds * 42)


def test_a_first_epoch_says_what_the_rest_of_a_trial_will_take() -> None:
    known, clock = pace()
    known.began("a")
    clock.now += 2
    known.reported("a")
    clock.now += 10
    known.epoch("a", step=1, steps=4)
    left = known.left(1)  # three epochs of this trial, then a whole one
    assert left == Range(30 + 42, 30 + 42, 30 + 42)


def test_what_a_running_trial_has_used_is_taken_off() -> None:
    known, clock = pace()
    whole(known, clock, "a", epoch_s=10, rest_s=2)
    known.began("b")
    clock.now += 2
    known.reported("b")
    clock.now += 10
    known.epoch("b", step=1, steps=4)
    clock.now += 5  # in the middle of its second epoch
    left = known.left(0)
    assert left is not None
    assert left.expected == pytest.approx(25)


def test_epochs_that_compute_the_teachers_labels_stop_counting_once_there_are_others() -> None:
    """First of 30 trials 40 s an epoch, all later ones 10 s: the estimate follows the later ones."""
    known, clock = pace()
    whole(known, clock, "a", epoch_s=40, rest_s=0)
    assert known.left(1) == Range(160, 160, 160)
    whole(known, clock, "b", epoch_s=10, rest_s=0)
    assert known.left(1) == Range(40, 40, 40)


def test_the_labels_that_are_still_missing_are_added_once() -> None:
    known, clock = pace(labels_s=30)
    known.began("a")
    clock.now += 40
    known.epoch("a", step=1, steps=4)
    left = known.left(2)  # three epochs and two whole trials of 10 s an epoch, and three more views
    assert left is not None
    assert left.expected == pytest.approx((3 + 8) * 10 + 3 * 30)


def test_two_that_begin_together_both_wait_for_the_labels() -> None:
    known, clock = pace(concurrency=2)
    for name in "ab":
        known.began(name)
    clock.now += 40
    known.epoch("a", step=1, steps=2)
    clock.now += 1
    known.epoch("b", step=1, steps=2)
    clock.now += 10
    known.epoch("b", step=2, steps=2)  # its labels were computed by nobody before
    assert known._whole_s == []
    known.began("c")
    clock.now += 7
    known.epoch("c", step=1, steps=2)
    assert known._whole_s == [14]


def test_smaller_networks_with_more_epochs_take_the_time_of_the_others() -> None:
    """4 epochs of 10 s or 32 of 1.25 s: no trial is thought to have 32 of 10 s."""
    known, clock = pace()
    for name, steps in (("few", 4), ("many", 32)):
        known.began(name)
        for step in range(1, steps + 1):
            clock.now += 40 / steps
            known.epoch(name, step=step, steps=steps)
        known.ended(name)
    left = known.left(3)
    assert left is not None
    assert (left.low, left.high) == (pytest.approx(120), pytest.approx(120))


def test_epochs_without_a_teacher_wait_for_no_soft_labels() -> None:
    known, clock = pace(labels_s=30)
    known.began("a")
    for step, taught in ((1, True), (2, False)):
        clock.now += 40 if taught else 10
        known.epoch("a", step=step, steps=4, taught=taught, views=1)
    left = known.left(1)  # two epochs of this trial and a whole one; no view is missing
    assert left is not None
    assert left.expected == pytest.approx(20 + 40)


def test_trials_that_are_stopped_or_find_their_student_make_the_rest_shorter() -> None:
    """Half of them train 1 of 4 epochs: 20 more take 20 * (40 + 10) / 2 s, give or take their luck."""
    known, clock = pace()
    for name in range(10):
        whole(known, clock, f"long{name}", epoch_s=10, rest_s=0)
        whole(known, clock, f"short{name}", epoch_s=10, rest_s=0, epochs=1)
    left = known.left(20)
    assert left is not None
    assert left.low < left.expected < left.high
    assert left.expected == pytest.approx(500, rel=0.08)
    # 10 % and 90 % quantiles of a sum of 20 fair draws from {10, 40}: 500 +- 1.28 * 15 * sqrt(20)
    assert left.low == pytest.approx(500 - 86, rel=0.08)
    assert left.high == pytest.approx(500 + 86, rel=0.08)


def test_before_a_trial_was_stopped_one_is_imagined() -> None:
    known, clock = pace(stops=True)
    whole(known, clock, "a", epoch_s=10, rest_s=0)
    left = known.left(1)  # like this one, a whole one, or one that ends at the first rung
    assert left is not None
    assert (left.low, left.expected, left.high) == (10, 40, 40)


def test_uneven_epochs_make_an_interval() -> None:
    known, clock = pace()
    whole(known, clock, "labels", epoch_s=99, rest_s=0)
    for name, epoch_s in enumerate([8.0, 10.0, 12.0] * 3):
        whole(known, clock, str(name), epoch_s=epoch_s, rest_s=0)
    left = known.left(10)
    assert left is not None
    assert (left.low, left.expected, left.high) == (320, 400, 480)


def test_a_thousand_trials_are_scaled_from_a_hundred() -> None:
    known, clock = pace(concurrency=4)
    whole(known, clock, "a", epoch_s=10, rest_s=2)
    left = known.left(1000)
    assert left is not None
    assert left.expected == pytest.approx(1000 / 4 * 42)


def test_the_second_trial_of_thirty_does_not_promise_four_times_the_truth() -> None:
    """Two at once, 12 s of epochs with the teacher's labels and 6 s without, a third stopped at a quarter."""
    known, clock = pace(concurrency=2, stops=True, labels_s=6)
    for name in "ab":
        known.began(name)
    clock.now += 20
    for name in "ab":
        known.reported(name)
    for step in range(1, 7):
        clock.now += 12
        for name in "ab":
            known.epoch(name, step=step, steps=6)
    known.ended("a")
    first = known.left(28)
    assert first is not None
    truth = 28 / 2 * (20 + (2 * 6 * 6 + 1 * 2 * 6) / 3)
    assert first.low <= truth <= first.high
    assert first.high < 1.5 * truth  # elapsed / done * left would say 4 times as much
