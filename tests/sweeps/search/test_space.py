import itertools
import math
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from sweeps import kd_prune
from sweeps.search.sampling.first_trials import LITERATURE, TEACHER_CUTS, far_cuts, first_trials
from sweeps.search.space import (
    SEARCHED,
    Space,
    default_space,
    describe,
    identify,
    parse,
    show,
    size,
)
from trainables.config.candidate import KD_LOSSES, CandidateConfig

PLAIN = CandidateConfig()


def values(distribution: CategoricalDistribution | FloatDistribution) -> list:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("alpha", "0.9", [0.9]),
        ("alpha", "0.5,0.9,0.5", [0.5, 0.9]),
        ("alpha", " 0.5 , 0.9 ", [0.5, 0.9]),
        ("alpha", "0.7:1", [0.7, 0.8, 0.9, 1.0]),
        ("temperature", "1:2", [1.0, 1.5, 2.0]),
        ("temperature", "1:2.2", [1.0, 1.5, 2.0]),
        ("pruning_ratio", "0:0.1", [0.0, 0.05, 0.1]),
        ("learning_rate", "1e-3,3e-3", [1e-3, 3e-3]),
        ("pruning_method", "structured", ["structured"]),
        ("pruning_method", "structured, l1_unstructured", ["structured", "l1_unstructured"]),
    ],
)
def test_what_a_flag_asks_for(name: str, text: str, expected: list) -> None:
    distribution = parse(name, text)
    assert values(distribution) == (expected if name == "pruning_method" else pytest.approx(expected))
    assert size({name: distribution}, PLAIN) == len(expected)


def test_a_range_of_learning_rates_is_continuous_and_logarithmic() -> None:
    distribution = parse("learning_rate", "1e-4:1e-2")
    assert distribution == FloatDistribution(1e-4, 1e-2, log=True)
    assert size({"learning_rate": distribution}, PLAIN) == math.inf


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("alpha", "x", r"alpha='x' must be a number, LOW:HIGH or a list"),
        ("alpha", "", r"alpha='' must be a number"),
        ("alpha", "0.5,", r"alpha='0.5,' must be a number"),
        ("alpha", "0.9:0.1", r"alpha='0.9:0.1' must be LOW:HIGH with LOW < HIGH"),
        ("alpha", "0.5:0.5", r"alpha='0.5:0.5' must be LOW:HIGH"),
        ("alpha", "0:0.5:1", r"alpha='0:0.5:1' must be LOW:HIGH"),
        ("alpha", "0:nan", r"alpha='0:nan' must be LOW:HIGH"),
        ("alpha", "0:2", r"alpha=2.0"),
        ("alpha", "0.5,1.5", r"alpha=1.5"),
        ("temperature", "0:4", r"temperature=0.0"),
        ("temperature", "1:inf", r"temperature=inf"),
        ("pruning_ratio", "0:1", r"pruning_ratio=1.0"),
        ("learning_rate", "0:1e-3", r"learning_rate=0.0"),
        ("pruning_method", "structured,l2", r"pruning_method.*'l2'"),
    ],
)
def test_malformed_and_out_of_range_texts_are_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_shown_distribution_parses_to_itself(name: str) -> None:
    distribution = default_space()[name]
    assert parse(name, show(distribution)) == distribution


def points_of(space: Space) -> list[dict[str, Any]]:
    """Every combination, inert parameters included."""
    choices = [values(distribution) for distribution in space.values()]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*choices)]


def test_every_value_of_the_default_space_is_a_configuration() -> None:
    for name, distribution in default_space().items():
        for value in values(distribution):
            CandidateConfig().replace(**{name: value})


@pytest.mark.parametrize("losses", ["kd", "none", "mse", "kd,none", "dkd,mse", "kd,dkd,mse,none"])
@pytest.mark.parametrize("alphas", ["0", "0.5", "0,0.5", "0:0.3", "0.7:0.9"])
def test_size_counts_trials_that_differ(losses: str, alphas: str) -> None:
    texts = {"kd_loss": losses, "alpha": alphas, "temperature": "1:2", "dkd_beta": "1,8", "pruning_ratio": "0,0.3"}
    space = {name: parse(name, text) for name, text in texts.items()}
    different = {identify(point, PLAIN) for point in points_of(space)}
    assert size(space, PLAIN) == len(different)


def test_a_space_is_described_as_its_flags_are_written() -> None:
    space = {name: parse(name, text) for name, text in {"alpha": "0:1", "learning_rate": "1e-4:1e-2"}.items()}
    assert describe(space | {"kd_loss": parse("kd_loss", "kd,dkd"), "temperature": parse("temperature", "4,6")}) == {
        "alpha": "0:1 in steps of 0.1",
        "learning_rate": "0.0001:0.01 (log scale)",
        "kd_loss": "kd,dkd",
        "temperature": "4,6",
    }


def test_size_of_the_default_space() -> None:
    """Rates x (ratios above 0 + no pruning) x (alphas above 0 x temperatures + no teacher)."""
    assert size(default_space(), PLAIN) == 3 * (17 + 1) * (10 * 15 + 1)


@pytest.mark.parametrize("precisions", ["fp32", "fp32,int8_ptq", "fp32,int8_ptq,int8_qat"])
def test_the_uncut_teacher_is_one_trial_a_file_however_it_would_be_taught(precisions: str) -> None:
    texts = {"student_model": "teacher,alexnet_small", "alpha": "0:1", "temperature": "1,2", "kd_loss": "kd,mse"}
    texts |= {"pruning_ratio": "0,0.3,0.5", "precision": precisions, "learning_rate": "1e-3,3e-3"}
    space = {name: parse(name, text) for name, text in texts.items()}
    points = itertools.product(*(values(space[name]) for name in space))
    different = {identify(dict(zip(space, point, strict=True)), PLAIN) for point in points}
    assert size(space, PLAIN) == len(different)
    untrained = [config for config in different if not config.needs_training and config.export.precision != "int8_qat"]
    assert len(untrained) == len(set(precisions.split(",")) - {"int8_qat"})


@pytest.mark.parametrize("unlabeled", [None, "more"])
def test_the_teachers_cuts_learn_from_labels_first_then_other_students_come_then_cuts_that_it_teaches(
    unlabeled: str | None,
) -> None:
    """Nobody but a teacher can teach images without labels: there it teaches all."""
    space = default_space() | {"student_model": parse("student_model", "teacher,alexnet_small")}
    points = first_trials(space, PLAIN.replace(unlabeled=unlabeled))
    runs = [(name, list(group)) for name, group in itertools.groupby(points, lambda point: point["student_model"])]
    assert [name for name, _ in runs] == ["teacher", "alexnet_small"] + ["teacher"] * (unlabeled is None)
    ratios = [[point["pruning_ratio"] for point in group] for name, group in runs if name == "teacher"]
    assert ratios == [list(TEACHER_CUTS), list(TEACHER_CUTS[1:])][: len(ratios)] and TEACHER_CUTS[0] == 0
    alphas = [{point["alpha"] for point in group if "alpha" in point} for name, group in runs if name == "teacher"]
    assert alphas == ([{0.0}, {0.7}] if unlabeled is None else [{0.7}])


def test_the_default_space_holds_the_literatures_points_exactly() -> None:
    assert first_trials(default_space(), PLAIN) == [
        {name: value for name, value in point.items() if name != "pruning_method"}
        for point in LITERATURE
        if point["kd_loss"] == "kd"
    ]


def test_every_loss_of_the_space_has_a_first_trial() -> None:
    space = default_space() | {"kd_loss": parse("kd_loss", ",".join(KD_LOSSES))}
    assert {point["kd_loss"] for point in first_trials(space, PLAIN)} == set(KD_LOSSES)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "1:2", 2.0),
        ("temperature", "5:8", 5.0),
        ("temperature", "1.2:8", 4.2),
        ("temperature", "1,3.5,10", 3.5),
        ("learning_rate", "3e-3:1e-2", 3e-3),
        ("pruning_method", "l1_unstructured", "l1_unstructured"),
    ],
)
def test_a_first_trial_outside_the_space_takes_its_nearest_point(name: str, text: str, expected: object) -> None:
    assert first_trials(default_space() | {name: parse(name, text)}, PLAIN)[0][name] == expected


def test_first_trials_lie_in_the_space_and_differ() -> None:
    texts = {
        "temperature": ("1:8", "1.3:1.9", "2"),
        "alpha": ("0:1", "0.05:0.2", "0,1"),
        "pruning_ratio": ("0:0.7", "0.02:0.28", "0.5"),
    }
    for combination in itertools.product(*texts.values()):
        space = default_space() | {name: parse(name, text) for name, text in zip(texts, combination, strict=True)}
        points = first_trials(space, PLAIN)
        assert 1 <= len(points) <= 2
        assert all(points.count(point) == 1 for point in points)
        for point in points:
            for name, chosen in point.items():
                assert chosen in [v if isinstance(v, str) else pytest.approx(v) for v in values(space[name])], name


def test_descriptions_tell_spaces_apart() -> None:
    assert describe(default_space()) == describe(default_space())
    assert describe(default_space()) != describe(default_space() | {"alpha": parse("alpha", "0:0.9")})


@pytest.mark.parametrize(
    ("texts", "ratios"),
    [
        ({"pruning_ratio": "0:0.7"}, [0.7, 0.45]),
        ({"pruning_ratio": "0.2,0.3,0.5"}, [0.5, 0.3]),
        ({"pruning_ratio": "0.3"}, [0.3]),
        ({"pruning_ratio": "0"}, []),
        ({"pruning_ratio": "0:0.7", "pruning_method": "l1_unstructured"}, []),
    ],
)
def test_far_cuts_are_the_upper_end_of_the_ratios(texts: dict[str, str], ratios: list[float]) -> None:
    space = {name: parse(name, text) for name, text in ({"pruning_method": "structured"} | texts).items()}
    assert [point["pruning_ratio"] for point in far_cuts(space, PLAIN, {"alpha": 0.5})] == ratios
    assert all(point["alpha"] == 0.5 for point in far_cuts(space, PLAIN, {"alpha": 0.5}))


@pytest.mark.parametrize(
    ("typed", "choices"),
    [
        ("", ("fp32", "int8_ptq")),
        ("--latency-runtime onnxruntime_cuda", ("fp32", "fp16")),  # it has no fast kernels for INT8
        ("--latency-runtime tensorrt", ("fp32", "fp16", "int8_ptq")),
        ("--latency-runtime tensorrt --precision fp32,fp16", ("fp32", "fp16")),
        ("--precision fp16", None),
    ],
)
def test_networks_are_written_in_the_files_that_the_runtime_is_fast_with(
    typed: str, choices: tuple[str, ...] | None
) -> None:
    _, flags = kd_prune._parse(["--preset", "quick", *typed.split()])
    search = kd_prune._config(flags).search
    if choices is None:
        assert "precision" not in search.space and search.base.export.precision == "fp16"
    else:
        assert search.space["precision"].choices == choices
