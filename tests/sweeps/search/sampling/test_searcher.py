import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna import Study
from optuna.trial import TrialState

from sweeps.search.config import SAMPLERS, Search
from sweeps.search.optuna_private import asked_for
from sweeps.search.sampling.first_trials import first_trials
from sweeps.search.sampling.searcher import (
    DUPLICATE,
    RULED_OUT,
    StudySearcher,
    dropped,
    finished,
    open_study,
)
from sweeps.search.sampling.tpe import BoundedTPE
from sweeps.search.space import Space, default_space, parse, tidy
from trainables.config.candidate import CandidateConfig

ONE_POINT = {
    "temperature": "4",
    "alpha": "0.9",
    "learning_rate": "1e-3",
    "pruning_method": "structured",
    "pruning_ratio": "0.3",
}
FINAL = {"final": True, "val_accuracy": 0.9, "latency_p50_ms": 1.5, "size_bytes": 1_000_000, "macs": 2_000_000}

# Of options of Optuna's samplers that it calls experimental; sweeps use them, and are silent about it.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def space_of(**texts: str) -> dict[str, Any]:
    """A space of one point but for the parameters given."""
    return {name: parse(name, text) for name, text in (ONE_POINT | texts).items()}


def driver(
    folder: Path, space: Space, *, seed: int = 1, objective: str = "composite", **how: Any
) -> tuple[Study, StudySearcher]:
    """What a driver does when it starts on this folder: for the first time, or after another one died."""
    search = Search(space=space, search_seed=seed, objective=objective, **{"reuse_probability": 0.0, **how})
    study = open_study(folder / "study.journal", "night", search)
    searcher = StudySearcher(
        study,
        search,
        tune_config=tune_config,
        score=lambda metrics: 100 * metrics["val_accuracy"],
    )
    return study, searcher


def tune_config(number: int, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"trial_number": number, "params": dict(params)}


def ask(searcher: StudySearcher, count: int, *, name: str = "t") -> list[dict[str, Any]]:
    configs = [searcher.suggest(f"{name}{i}") for i in range(count)]
    assert all(isinstance(config, dict) for config in configs)
    return configs


def test_the_literatures_settings_come_first(tmp_path: Path) -> None:
    """Those of one student one after the other: run at once, the second would only wait for the first."""
    _, searcher = driver(tmp_path, default_space())
    first, second = first_trials(default_space(), CandidateConfig())
    at_once = ask(searcher, 2)
    assert at_once[0]["params"] == first
    assert at_once[1]["params"] != second
    assert [config["trial_number"] for config in at_once] == [0, 1]
    searcher.on_trial_complete("t0", FINAL)
    assert ask(searcher, 1, name="later")[0]["params"] == second


def test_the_better_of_two_students_is_pruned_hard_once(tmp_path: Path) -> None:
    """Its cuts come before other proposals, and neither a resumed driver nor a third student repeats them."""
    _, searcher = driver(tmp_path, default_space(), reuse_probability=0.25)
    _, other = ask(searcher, 2)
    searcher.on_trial_complete("t0", FINAL)
    searcher.on_trial_complete("t1", FINAL | {"val_accuracy": 0.91})
    literature, far, middle = (config["params"] for config in ask(searcher, 3, name="cut"))
    assert literature == first_trials(default_space(), CandidateConfig())[1]
    student = {name: value for name, value in other["params"].items() if not name.startswith("pruning")}
    assert far == {**student, "pruning_ratio": 0.85}
    assert middle == {**far, "pruning_ratio": 0.55}
    study, searcher = driver(tmp_path, default_space(), reuse_probability=0.25)
    ask(searcher, 4, name="again")  # three that died, and one more
    searcher.on_trial_complete("again3", FINAL)
    ask(searcher, 1, name="later")
    assert [{**trial.params} == far for trial in study.trials].count(True) == 1


@pytest.mark.parametrize("how", [{"sampler": "grid", "reuse_probability": 0.25}, {"reuse_probability": 0.0}])
def test_a_grid_and_a_search_without_reuse_get_no_cuts(tmp_path: Path, how: dict[str, Any]) -> None:
    study, searcher = driver(tmp_path, space_of(pruning_ratio="0:0.7"), **how)
    for name in ("a", "b"):
        ask(searcher, 1, name=name)
        searcher.on_trial_complete(f"{name}0", FINAL)
    assert not study.user_attrs


def test_nothing_is_proposed_twice_while_trials_run_and_after(tmp_path: Path) -> None:
    space = space_of(alpha="0.5:0.9", pruning_ratio="0.2:0.4")
    _, searcher = driver(tmp_path, space)
    seen = []
    for round_ in range(4):
        for config in ask(searcher, 4, name=f"r{round_}-"):
            assert config["params"].keys() == space.keys()
            seen.append(config["params"])
        for i in range(0, 4, 2):
            searcher.on_trial_complete(f"r{round_}-{i}", FINAL)
    assert all(seen.count(params) == 1 for params in seen)


@pytest.mark.parametrize(("sampler", "seed"), [("tpe", 0), ("tpe", 1), ("grid", 0)])
def test_a_space_of_four_is_searched_whole_then_exhausted(tmp_path: Path, sampler: str, seed: int) -> None:
    _, searcher = driver(tmp_path, space_of(alpha="0.5,0.9", pruning_ratio="0.2,0.3"), sampler=sampler, seed=seed)
    seen = []
    for i in range(4):
        assert not searcher.exhausted
        (config,) = ask(searcher, 1)
        seen.append(config["params"])
        searcher.on_trial_complete("t0", FINAL | {"val_accuracy": 0.9 - 0.1 * i})
    assert {(params["alpha"], params["pruning_ratio"]) for params in seen} == {
        (0.5, 0.2), (0.5, 0.3), (0.9, 0.2), (0.9, 0.3)
    }  # fmt: skip
    assert searcher.suggest("one more") == StudySearcher.FINISHED
    assert searcher.exhausted


def test_proposals_dropped_as_duplicates_do_not_count_as_finished(tmp_path: Path) -> None:
    study, searcher = driver(tmp_path, space_of(alpha="0.5,0.9"))
    numbers = [config["trial_number"] for config in ask(searcher, 2)]
    assert searcher.suggest("none left") == StudySearcher.FINISHED
    assert finished(study) == []
    searcher.on_trial_complete("t0", FINAL)
    searcher.on_trial_complete("t1", {"invalid": "no layer is left"})
    assert [trial.number for trial in finished(study)] == numbers
    assert any(DUPLICATE in trial.user_attrs for trial in study.trials)


def test_a_finished_candidate_is_complete_with_its_score_and_numbers(tmp_path: Path) -> None:
    study, searcher = driver(tmp_path, default_space())
    ask(searcher, 1)
    searcher.on_trial_complete("t0", FINAL)
    (trial,) = study.get_trials(states=(TrialState.COMPLETE,))
    assert trial.value == pytest.approx(90.0)
    assert {name: trial.user_attrs[name] for name in FINAL if name != "final"} == {
        name: value for name, value in FINAL.items() if name != "final"
    }


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "stopped"),
        ({}, "stopped"),
        ({"stage": "student", "epoch": 3, "val_accuracy": 0.8, "final": False}, "stopped"),
        (FINAL | {"val_accuracy": math.nan}, "stopped"),
        (FINAL | {"val_accuracy": -math.inf}, "stopped"),
        ({"invalid": "pruning_ratio=0.9 leaves no channel", "final": False}, "leaves no channel"),
    ],
    ids=["nothing", "empty", "stopped early", "nan", "infinite", "invalid"],
)
def test_what_gives_no_candidate_is_pruned_with_its_reason(tmp_path: Path, result: dict | None, reason: str) -> None:
    study, searcher = driver(tmp_path, default_space())
    ask(searcher, 1)
    searcher.on_trial_complete("t0", result)
    (trial,) = finished(study)
    assert trial.state is TrialState.PRUNED
    assert reason in trial.user_attrs["reason"]
    assert trial.value is None


def test_a_broken_machine_is_a_failure_that_samplers_ignore_and_may_be_proposed_again(tmp_path: Path) -> None:
    study, searcher = driver(tmp_path, space_of())
    (lost,) = ask(searcher, 1)
    searcher.on_trial_complete("t0", FINAL, error=True)
    (trial,) = study.get_trials(states=(TrialState.FAIL,))
    assert trial.params == lost["params"]
    assert ask(searcher, 1, name="again")[0]["params"] == lost["params"]


def test_a_broken_machine_is_forgiven_though_duplicates_were_dropped(tmp_path: Path) -> None:
    _, searcher = driver(tmp_path, space_of())
    (lost,) = ask(searcher, 1)
    assert searcher.suggest("none left") == StudySearcher.FINISHED
    searcher.on_trial_complete("t0", None, error=True)
    assert ask(searcher, 1, name="again")[0]["params"] == lost["params"]


def test_being_told_twice_or_about_a_stranger_changes_nothing(tmp_path: Path) -> None:
    study, searcher = driver(tmp_path, default_space())
    ask(searcher, 1)
    searcher.on_trial_complete("t0", FINAL)
    searcher.on_trial_complete("t0", None, error=True)
    searcher.on_trial_complete("stranger", FINAL)
    assert [trial.state for trial in finished(study)] == [TrialState.COMPLETE]


def test_the_next_driver_hands_out_what_the_dead_one_left_running(tmp_path: Path) -> None:
    _, first = driver(tmp_path, default_space())
    before = ask(first, 4)
    first.on_trial_complete("t1", FINAL)
    study, second = driver(tmp_path, default_space())
    assert ask(second, 3) == [before[0], before[2], before[3]]
    assert ask(second, 1, name="new")[0]["trial_number"] > 3
    second.on_trial_complete("t0", FINAL)
    assert [trial.number for trial in finished(study)] == [0, 1]


def test_a_driver_that_died_in_the_middle_of_asking_leaves_a_whole_trial(tmp_path: Path) -> None:
    study, dead = driver(tmp_path, default_space())
    whole = ask(dead, len(first_trials(default_space(), CandidateConfig())))
    half = study.ask()
    half.suggest_float("alpha", 0.0, 1.0, step=0.1)
    _, searcher = driver(tmp_path, default_space())
    *others, orphan = ask(searcher, len(whole) + 1)
    assert others == whole
    assert orphan["trial_number"] == half.number
    assert orphan["params"]["alpha"] == tidy(half.params)["alpha"]
    assert {"learning_rate", "pruning_ratio"} < orphan["params"].keys()
    assert tidy(study.trials[half.number].params) == orphan["params"]


def test_the_literature_is_not_enqueued_again_on_resuming(tmp_path: Path) -> None:
    for name in "ab":
        study, searcher = driver(tmp_path, default_space())
        ask(searcher, 3, name=name)
        searcher.on_trial_complete(f"{name}0", FINAL)
        ask(searcher, 1, name=f"{name}later")
    params = [trial.params for trial in study.trials]
    assert all(params.count(point) == 1 for point in first_trials(default_space(), CandidateConfig()))


def test_a_resumed_sampler_does_not_repeat_its_first_proposals(tmp_path: Path) -> None:
    space = default_space() | {"learning_rate": parse("learning_rate", "1e-5:1e-2")}
    rates = []
    for name in "abc":
        study, searcher = driver(tmp_path, space)
        for i, config in enumerate(ask(searcher, 5, name=name)):
            rates.append(config["params"]["learning_rate"])
            searcher.on_trial_complete(f"{name}{i}", FINAL)
    assert len(set(rates)) == len(rates) - 1  # the literature's two points share theirs
    assert not any(DUPLICATE in trial.user_attrs for trial in study.trials)


def test_the_same_seed_searches_the_same_way(tmp_path: Path) -> None:
    runs = []
    for folder, seed in ((tmp_path / "a", 7), (tmp_path / "b", 7), (tmp_path / "c", 8)):
        folder.mkdir()
        runs.append([config["params"] for config in ask(driver(folder, default_space(), seed=seed)[1], 5)])
    assert runs[0] == runs[1] != runs[2]


def test_a_suggestion_is_plain_json(tmp_path: Path) -> None:
    _, searcher = driver(tmp_path, default_space())
    for config in ask(searcher, 4):
        assert json.loads(json.dumps(config)) == config


def measured(params: Mapping[str, Any]) -> dict[str, float]:
    """A made-up world: pruning costs accuracy and buys speed and size."""
    ratio = params["pruning_ratio"]
    return FINAL | {
        "val_accuracy": 0.9 - 0.2 * ratio + 0.01 * params["alpha"],
        "latency_p50_ms": 2 - ratio,
        "size_bytes": int(1e6 * (1 - ratio) ** 2) + 1,
    }


@pytest.mark.parametrize("objective", ["composite", "pareto"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_every_kind_of_ending(tmp_path: Path, sampler: str, objective: str) -> None:
    """Finished, over a limit before and after training, stopped, failed: all in one study, none left running."""
    space = space_of(alpha="0.1:0.9", pruning_ratio="0:0.7", temperature="1,2,4")
    how = {"sampler": sampler, "objective": objective, "reuse_probability": 0.3}
    study, searcher = driver(tmp_path, space, **how)
    for i in range(16):
        name = f"t{i}"
        config = searcher.suggest(name)
        assert isinstance(config, dict)
        result = measured(study.trials[config["trial_number"]].params)
        ends = {
            0: {"final": False, "excess": {"max_size_mb": 0.4}},
            6: result | {"excess": {"max_drop": 0.7}},
            9: {"final": False, "stage": "student"},
        }
        searcher.on_trial_complete(name, ends.get(i, result | {"excess": {"max_drop": -0.1}}), error=i == 12)
    trials = [trial for trial in study.trials if not dropped(trial)]
    states = [trial.state for trial in trials]
    assert [states.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)] == [13, 2, 1]
    over = [trial.constraints for trial in trials if any(by > 0 for by in trial.constraints.values())]
    assert over == [{"max_size_mb": 0.4}, {"max_drop": 0.7}]


def test_tpe_turns_away_from_what_is_over_a_limit(tmp_path: Path) -> None:
    """Half of the space is infeasible, and accuracy pulls towards it: proposals gather at the limit, on both sides."""
    study, searcher = driver(tmp_path, space_of(alpha="0.1:0.9", pruning_ratio="0:0.95", temperature="1:8"))
    for i in range(60):
        config = searcher.suggest(f"t{i}")
        params = study.trials[config["trial_number"]].params
        over = 0.5 - params["pruning_ratio"]
        result = measured(params) | {"excess": {"max_drop": over}}
        searcher.on_trial_complete(f"t{i}", result if over <= 0 else {"final": False, "excess": result["excess"]})
    late = [trial for trial in study.trials if DUPLICATE not in trial.user_attrs][30:]
    assert sum(trial.params["pruning_ratio"] < 0.4 for trial in late) <= 6  # 12 of 30 at random


@pytest.mark.parametrize(("more", "wider"), [({}, 0), ({"num_float_layers": 2}, 1)])
def test_an_int8_file_with_float_layers_over_its_limit_does_not_rule_out_wider_ones(
    tmp_path: Path, more: dict[str, int], wider: int
) -> None:
    space = space_of(pruning_ratio="0,0.3", precision="int8_ptq")
    _, searcher = driver(tmp_path, space)
    (first,) = ask(searcher, 1)
    assert first["params"]["pruning_ratio"] == 0.3
    searcher.on_trial_complete("t0", FINAL | {"excess": {"max_size_mb": 0.2}} | more)
    for name, how in (("now", searcher), ("later", driver(tmp_path, space)[1])):  # another driver knows it too
        assert isinstance(how.suggest(name), dict) == bool(wider)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_shape_wider_than_one_over_its_limit_costs_no_trial(tmp_path: Path, sampler: str) -> None:
    space = space_of(alpha="0.5,0.7,0.9", pruning_ratio="0,0.1,0.2,0.3,0.4,0.5,0.6,0.7", pruning_method="structured")

    def result_of(config: dict[str, Any]) -> dict[str, Any]:
        over = 0.45 - config["params"]["pruning_ratio"]
        result = measured(config["params"]) | {"excess": {"max_macs": over}}
        return result if over <= 0 else {"final": False, "excess": result["excess"]}

    study, searcher = driver(tmp_path, space, sampler=sampler)
    for _ in range(4):
        (config,) = ask(searcher, 1)
        searcher.on_trial_complete("t0", result_of(config))
    for name in ("one", "more"):  # another driver knows it too
        study, searcher = driver(tmp_path, space, sampler=sampler)
        while isinstance(config := searcher.suggest(name), dict):
            searcher.on_trial_complete(name, result_of(config))
    trials = finished(study)
    ratios = [trial.params["pruning_ratio"] for trial in trials if trial.constraints["max_macs"] > 0]
    assert ratios == sorted(set(ratios))  # each narrower than those before
    assert sum(trial.constraints["max_macs"] <= 0 for trial in trials) == 9
    told = [trial for trial in study.trials if RULED_OUT in trial.user_attrs]
    assert told
    for trial in told:
        assert trial.state is TrialState.FAIL
        assert 0 < trial.constraints["max_macs"] <= 0.45 - trial.params["pruning_ratio"] + 1e-9


@pytest.mark.parametrize("attribute", [DUPLICATE, RULED_OUT])
def test_a_proposal_that_was_being_dropped_when_its_driver_died_is_dropped(tmp_path: Path, attribute: str) -> None:
    study, searcher = driver(tmp_path, space_of(alpha="0.5,0.9"), seed=0)
    number = ask(searcher, 1)[0]["trial_number"]
    searcher._trial(number).set_user_attr(attribute, True)  # and the driver dies before the study is told
    study, searcher = driver(tmp_path, space_of(alpha="0.5,0.9"), seed=0)
    assert study.trials[number].state is TrialState.FAIL
    assert number not in [config["trial_number"] for config in ask(searcher, 2)]
    for name in ("t0", "t1"):
        searcher.on_trial_complete(name, FINAL)
    assert len(finished(study)) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_a_space_of_a_hundred_is_searched_to_its_last_point(tmp_path: Path, sampler: str) -> None:
    space = space_of(alpha="0.5,0.6,0.7,0.8,0.9", temperature="1,2,3,4", pruning_ratio="0.1,0.2,0.3,0.4,0.5")
    study, searcher = driver(tmp_path, space, sampler=sampler, reuse_probability=0.25)
    while isinstance(config := searcher.suggest("t"), dict):
        searcher.on_trial_complete("t", measured(config["params"]))
    assert len(finished(study)) == 100
    assert searcher.exhausted


def test_reuse_keeps_the_student_of_a_promising_trial_and_varies_its_pruning(tmp_path: Path) -> None:
    space = space_of(alpha="0.1:0.9", pruning_ratio="0:0.95", temperature="1:8")
    study, searcher = driver(tmp_path, space, reuse_probability=1.0)
    students, kept = [], 0
    for i in range(24):
        config = searcher.suggest(f"t{i}")
        params = study.trials[config["trial_number"]].params
        student = {name: params[name] for name in ("alpha", "temperature", "learning_rate")}
        kept += student in students
        students.append(student)
        searcher.on_trial_complete(f"t{i}", measured(params))
    assert kept >= 18
    pruned = [str(trial.params) for trial in study.trials if DUPLICATE not in trial.user_attrs]
    assert len(pruned) == len(set(pruned))


def test_a_long_sweep_is_proposed_from_a_part_of_it_and_so_is_its_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other samplers in between: chance, and those that keep a student."""
    monkeypatch.setattr("sweeps.search.sampling.tpe.REMEMBERED", 10)
    for driven in "ab":
        study, searcher = driver(tmp_path, default_space(), objective="pareto", reuse_probability=0.5)
        for number in range(40):
            (config,) = ask(searcher, 1, name=f"{driven}{number}-")
            worse = config["params"]["pruning_ratio"]
            measured = FINAL | {"val_accuracy": 0.9 - worse**2, "latency_p50_ms": 2 - worse}
            searcher.on_trial_complete(f"{driven}{number}-0", measured)
        assert isinstance(searcher._sampler, BoundedTPE)
        assert 10 <= len(searcher._sampler._kept) <= 30
    done = finished(study)
    assert len(done) == 80 and all(trial.state == TrialState.COMPLETE for trial in done)


def test_every_finished_network_is_tried_in_the_other_precisions_once(tmp_path: Path) -> None:
    space = space_of(alpha="0.5:0.9", pruning_ratio="0.2:0.4", precision="fp32,int8_ptq,int8_qat")
    study, searcher = driver(tmp_path, space)
    (first,) = ask(searcher, 1)
    searcher.on_trial_complete("t0", FINAL)
    others = [config["params"] for config in ask(searcher, 2, name="other")]
    written = [word for word in ("fp32", "int8_ptq") if word != first["params"]["precision"]]
    assert others[: len(written)] == [first["params"] | {"precision": word} for word in written]
    for i in range(2):
        searcher.on_trial_complete(f"other{i}", FINAL)
    _, again = driver(tmp_path, space)
    seen = [tidy(trial.params) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    for config in ask(again, 4, name="again"):
        assert config["params"] not in seen


def test_a_stopped_network_is_written_in_no_other_precision(tmp_path: Path) -> None:
    space = space_of(pruning_ratio="0.2:0.4", precision="fp32,int8_ptq")
    study, searcher = driver(tmp_path, space)
    (first,) = ask(searcher, 1)
    searcher.on_trial_complete("t0", {"final": False})
    queued = [asked_for(trial) for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    assert all(params["pruning_ratio"] != first["params"]["pruning_ratio"] for params in queued)
