"""Parameters that exist only where the loss reads them: asking, counting, enqueuing, never twice the same student."""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from sweeps.search.config import Search
from sweeps.search.sampling.first_trials import first_trials
from sweeps.search.sampling.searcher import DUPLICATE, StudySearcher, open_study
from sweeps.search.space import Space, active, default_space, identify, parse, size, split, suggest, tidy
from trainables.config.candidate import KD_LOSSES, CandidateConfig, StudentConfig

ALL = ",".join(KD_LOSSES)
PLAIN = CandidateConfig()
SMALL = {"dkd_beta": "1,2", "alpha": "0,0.5", "temperature": "1,4", "kd_loss": ALL}
FINAL = {"final": True, "latency_p50_ms": 1.5, "size_bytes": 1_000_000, "macs": 2_000_000}


def space_of(**texts: str) -> dict[str, Any]:
    return {name: parse(name, text) for name, text in texts.items()}


def values(distribution: CategoricalDistribution | FloatDistribution) -> list:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [round(distribution.low + i * distribution.step, 10) for i in range(count)]


def grid(space: Space) -> list[dict[str, Any]]:
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*map(values, space.values()))]


def student(point: dict[str, Any]) -> StudentConfig:
    """What decides the student's place in the store."""
    return CandidateConfig().replace(**point).canonical().student


@pytest.mark.parametrize(
    "texts",
    [
        {"kd_loss": ALL, "alpha": "0:0.3", "temperature": "1:2", "dkd_beta": "1,2", "learning_rate": "1e-3,3e-3"},
        {"kd_loss": "kd,none", "alpha": "0.5,0.9", "temperature": "1,4", "dkd_beta": "8"},
        {"kd_loss": "kd,dist", "alpha": "0", "temperature": "1:8"},
        {"kd_loss": ALL},
        {"alpha": "0:1", "temperature": "1:8", "dkd_beta": "1,2"},
        {"temperature": "1:8"},
        {"learning_rate": "1e-3,3e-3"},
    ],
)
def test_the_size_is_the_number_of_students_that_the_store_tells_apart(texts: dict[str, str]) -> None:
    space = space_of(**texts)
    assert size(space, PLAIN) == len({student(point) for point in grid(space)})


def test_two_points_are_one_to_the_search_if_and_only_if_they_are_one_to_the_store() -> None:
    for one, other in itertools.combinations(grid(space_of(**SMALL)), 2):
        assert (identify(one, PLAIN) == identify(other, PLAIN)) == (student(one) == student(other)), (one, other)


def test_no_values_times_a_continuous_range_is_none() -> None:
    space = space_of(alpha="0", pruning_ratio="0.2,0.3,0.4") | {"temperature": FloatDistribution(1, 8)}
    assert size(space, PLAIN) == 3
    assert size(space | space_of(alpha="0,1"), PLAIN) == math.inf


def test_a_trial_is_asked_only_for_what_its_loss_reads() -> None:
    space = default_space() | space_of(kd_loss=ALL, alpha="0:0.3")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(300):
        trial = study.ask()
        params = suggest(trial, space, PLAIN)
        assert params == tidy(trial.params) == suggest(trial, space, PLAIN)
        loss, others = params["kd_loss"], {"kd_loss", "learning_rate", "pruning_ratio"}
        read = {"alpha", *(KD_LOSSES[loss] if params.get("alpha") else ())} if loss != "none" else set()
        assert params.keys() == others | read
        seen.add((loss, params.get("alpha") == 0))
    assert len(seen) == 6 * 2 + 1


@pytest.mark.parametrize(
    "fixed", [{"kd_loss": "dkd"}, {"alpha": 0.0}, {"temperature": 8.0, "alpha": 0.0}, {"kd_loss": "none", "alpha": 0.5}]
)
def test_enqueued_points_may_lack_parameters_or_have_inert_ones(fixed: dict) -> None:
    study = optuna.create_study()
    study.enqueue_trial(fixed)
    params = suggest(study.ask(), default_space() | space_of(kd_loss=ALL), PLAIN)
    assert params.items() >= active({"kd_loss": params["kd_loss"]} | fixed, PLAIN).items() or params["alpha"] == 0
    if params["kd_loss"] == "none" or params["alpha"] == 0:
        assert "temperature" not in params


def test_first_trials_are_each_papers_setting_on_our_grid() -> None:
    points = first_trials(default_space() | space_of(kd_loss=ALL), PLAIN)
    settings = [tuple(point.get(name) for name in ("kd_loss", "alpha", "temperature", "dkd_beta")) for point in points]
    assert settings == [
        ("kd", 0.9, 4.0, None),
        ("kd", 0.9, 4.0, None),
        ("logit_std", 1.0, 2.0, None),
        ("dkd", 0.5, 4.0, 8.0),
        ("dist", 0.7, 4.0, None),
        ("wttm", 0.8, 5.0, None),
        ("mse", 1.0, None, None),
        ("none", None, None, None),
    ]
    assert first_trials(space_of(alpha="0:1", temperature="1:8"), PLAIN) == [{"alpha": 0.9, "temperature": 4.0}]


def test_first_trials_without_a_teacher_are_one_a_ratio() -> None:
    points = first_trials(default_space() | space_of(kd_loss=ALL, alpha="0"), PLAIN)
    assert [(student(point).kd_loss, point["pruning_ratio"]) for point in points] == [("none", 0.2), ("none", 0.3)]


def driver(folder: Path, space: Space) -> tuple[optuna.Study, StudySearcher]:
    search = Search(space=space, objective="composite", reuse_probability=0.0)
    study = open_study(folder / "study.journal", "night", search)
    searcher = StudySearcher(
        study,
        search,
        tune_config=lambda number, params: {"trial_number": number, "params": dict(params)},
        score=lambda metrics: 100 * metrics["val_accuracy"],
    )
    return study, searcher


def worth(params: dict[str, Any]) -> float:
    """A made-up accuracy: dkd at high beta and low temperature is best."""
    bonus = {"dkd": 0.1 + 0.01 * params.get("dkd_beta", 0.0), "none": -0.1}.get(params["kd_loss"], 0.0)
    return 0.6 + bonus - 0.01 * params.get("temperature", 4.0) - 0.2 * abs(params["pruning_ratio"] - 0.3)


def test_tpe_searches_all_losses_without_warnings_and_never_one_student_twice(tmp_path: Path) -> None:
    space = default_space() | space_of(kd_loss=ALL)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, searcher = driver(tmp_path, space)
        for i in range(40):
            config = searcher.suggest(f"t{i}")
            assert isinstance(config, dict)
            seen.append(identify(config["params"], PLAIN))
            searcher.on_trial_complete(f"t{i}", FINAL | {"val_accuracy": worth(config["params"])})
    assert len(set(seen)) == len(seen)
    assert {one.student.kd_loss for one in seen} == set(KD_LOSSES)
    late = [one.student.kd_loss for one in seen[20:]]
    assert late.count("dkd") > 20 / len(KD_LOSSES)
    # on disk, read by somebody else
    reread = open_study(tmp_path / "study.journal", "night", Search(space=space, objective="composite"))
    complete = reread.get_trials(states=(TrialState.COMPLETE,))
    assert [identify(trial.params, PLAIN) for trial in complete] == seen
    for trial in complete:
        assert ("temperature" in trial.params) == (
            bool(trial.params.get("alpha")) and trial.params["kd_loss"] not in ("mse", "none")
        )
        assert ("dkd_beta" in trial.params) == (trial.params["kd_loss"] == "dkd" and trial.params["alpha"] > 0)


def test_a_small_space_is_searched_whole_then_exhausted(tmp_path: Path) -> None:
    """alpha=0 is one trial, whatever its temperature, and the same as no teacher."""
    space = space_of(kd_loss="kd,mse,none", alpha="0,0.5", temperature="1,2", pruning_ratio="0.3")
    study, searcher = driver(tmp_path, space)
    seen = []
    for i in range(10):
        config = searcher.suggest(f"t{i}")
        if not isinstance(config, dict):
            break
        seen.append(identify(config["params"], PLAIN))
        searcher.on_trial_complete(f"t{i}", FINAL | {"val_accuracy": 0.5})
    assert searcher.exhausted
    assert len(seen) == size(space, PLAIN) == 2 + 1 + 1
    assert sum(one.student.kd_loss == "none" for one in seen) == 1
    assert any(DUPLICATE in trial.user_attrs for trial in study.trials)


def test_orphans_keep_their_parameters_and_get_those_that_they_lack(tmp_path: Path) -> None:
    space = default_space() | space_of(kd_loss=ALL)
    _, first = driver(tmp_path, space)
    before = [first.suggest(f"t{i}") for i in range(12)]
    half = first._study.ask()
    half.suggest_categorical("kd_loss", space["kd_loss"].choices)
    _, second = driver(tmp_path, space)
    assert [second.suggest(f"u{i}") for i in range(12)] == before
    whole = second.suggest("half")
    assert whole["trial_number"] == half.number
    assert whole["params"]["kd_loss"] == half.params["kd_loss"]
    assert student(whole["params"])
    assert {"learning_rate", "pruning_ratio"} <= whole["params"].keys()


def test_settings_of_channels_are_asked_for_where_channels_are_removed() -> None:
    space = default_space() | {
        "pruning_method": parse("pruning_method", "structured,l1_global,nm_2_4"),
        "pruning_ratio": parse("pruning_ratio", "0,0.5"),
        "pruning_criterion": parse("pruning_criterion", "magnitude,lamp,taylor"),
        "pruning_scope": parse("pruning_scope", "layer,global"),
        "precision": parse("precision", "fp32,int8_ptq"),
    }
    pruning = {name: values for name, values in space.items() if name.startswith("p")}
    # nothing, half of all weights, 2:4, and for channels: 3 criteria globally, 2 in a layer, where lamp is magnitude
    assert size(pruning, PLAIN) == 2 * (1 + 1 + 1 + 3 + 2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        params = suggest(study.ask(), space, PLAIN)
        assert ("pruning_ratio" in params) == (params["pruning_method"] != "nm_2_4")
        channels = params["pruning_method"] == "structured" and params["pruning_ratio"] > 0
        asked = {"pruning_criterion", "pruning_scope"} & params.keys()
        assert len(asked) == (2 if channels else 0)
        assert "precision" in params


def test_one_value_of_an_optional_parameter_is_a_setting() -> None:
    searched, fixed = split({"alpha": "0.5", "precision": "int8_ptq", "pruning_scope": "layer,global"})
    assert set(searched) == {"alpha", "pruning_scope"}
    assert fixed == {"precision": "int8_ptq"}
