from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.search.sampling import tpe
from sweeps.search.sampling.tpe import BoundedTPE, remembered

# Of options of Optuna's samplers that it calls experimental; sweeps use them, and are silent about it.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE = {"x": FloatDistribution(0, 1), "method": CategoricalDistribution(["a", "b"])}
DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]


class Watched(BoundedTPE):
    """Writes down how many trials Optuna is shown."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.weighed: list[int] = []

    def _sample(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> Any:
        self.weighed.append(len(study._get_trials(deepcopy=False)))
        return super()._sample(study, trial, search_space)


def trial(rng: np.random.Generator, *, objectives: int = 3) -> FrozenTrial:
    """Cheap where x is small, right where it is large; `b` is worse in every respect; every tenth was stopped."""
    x, method = float(rng.random()), str(rng.choice(["a", "b"]))
    worse = 0.5 * (method == "b")
    values = [1 - (x - 0.8) ** 2 - worse, x + worse, x + worse][:objectives]
    stopped = rng.random() < 0.1
    return create_trial(
        params={"x": x, "method": method},
        distributions=SPACE,
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        values=None if stopped else values,
        constraints={"max_size_mb": x - 0.95},
    )


def study_of(count: int, sampler: optuna.samplers.BaseSampler, *, objectives: int = 3) -> optuna.Study:
    rng = np.random.default_rng(0)
    study = optuna.create_study(directions=DIRECTIONS[:objectives], sampler=sampler)
    study.add_trials([trial(rng, objectives=objectives) for _ in range(count)])
    return study


def proposals(study: optuna.Study, count: int) -> list[dict[str, object]]:
    found = []
    for _ in range(count):
        asked = study.ask()
        found.append({"x": asked.suggest_float("x", 0, 1), "method": asked.suggest_categorical("method", ["a", "b"])})
        study.tell(asked, state=TrialState.PRUNED)
    return found


def test_as_optunas_own_as_long_as_it_may_see_all() -> None:
    theirs = optuna.samplers.TPESampler(seed=7, multivariate=True, group=True)
    assert proposals(study_of(60, BoundedTPE(7)), 5) == proposals(study_of(60, theirs), 5)


@pytest.mark.parametrize("objectives", [1, 3])
def test_a_part_of_a_long_sweep_still_tells_the_good_from_the_bad(
    objectives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpe, "REMEMBERED", 60)
    sampler = Watched(0)
    study = study_of(1000, sampler, objectives=objectives)
    found = proposals(study, 100)  # told one by one: what is remembered grows, and is chosen anew
    assert len(sampler.weighed) >= 100 and max(sampler.weighed) <= 121  # and the one that is asked for
    assert sum(one["method"] == "a" for one in found) > 80
    if objectives == 1:
        assert np.median([abs(float(str(one["x"])) - 0.8) for one in found]) < 0.1


@pytest.mark.nightly
def test_after_forgetting_many_times_old_trials_are_as_likely_remembered_as_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tpe, "REMEMBERED", 100)
    sampler, rng = BoundedTPE(0), np.random.default_rng(3)
    study = study_of(0, sampler)
    for _ in range(20):
        study.add_trials([trial(rng) for _ in range(150)])
        proposals(study, 1)
        assert len(sampler._kept) >= min(100, len(study.trials))
    old = sum(at < len(study.trials) // 2 for at in sampler._kept)
    assert 0.3 < old / len(sampler._kept) < 0.6  # those added since the last time are there whole


def test_what_is_good_is_remembered_and_a_share_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "REMEMBERED", 100)
    rng = np.random.default_rng(1)
    trials = [trial(rng) for _ in range(2000)]
    for number, one in enumerate(trials):
        one.number = number
    best = create_trial(params={"x": 0.8, "method": "a"}, distributions=SPACE, values=[2.0, 0.0, 0.0])
    best.number = 2000
    kept = remembered([*trials, best], DIRECTIONS, rng)
    assert len(kept) == 100 and kept == sorted(kept, key=lambda one: one.number)
    assert best in kept
    assert {one.state for one in kept} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert any(one.constraints["max_size_mb"] > 0 for one in kept[:-1])
    bad = [one for one in kept if one.params["method"] == "b"]
    assert 20 < len(bad) < 60


def test_what_is_over_a_limit_is_not_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "REMEMBERED", 10)
    rng = np.random.default_rng(2)
    over = create_trial(
        params={"x": 0.8, "method": "a"}, distributions=SPACE, values=[9.0, 0, 0], constraints={"max_size_mb": 1.0}
    )
    good = create_trial(params={"x": 0.8, "method": "a"}, distributions=SPACE, values=[2.0, 0, 0])
    kept = [remembered([over, good, *(trial(rng) for _ in range(500))], DIRECTIONS, rng) for _ in range(20)]
    assert sum(over in part for part in kept) < 5
    assert all(good in part for part in kept)
