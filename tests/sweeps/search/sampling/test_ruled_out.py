import pytest

from sweeps.search.sampling.ruled_out import RuledOut
from trainables.config.candidate import CandidateConfig

SIZE, LATENCY, DROP = "max_size_mb", "max_latency_ms", "max_drop"


def cut(ratio: float, **more: object) -> dict[str, object]:
    return {"pruning_method": "structured", "pruning_ratio": ratio, **more}


def known(*trials: tuple[dict[str, object], dict[str, float]]) -> RuledOut:
    shapes = RuledOut(CandidateConfig())
    for params, excess in trials:
        shapes.add(params, excess)
    return shapes


@pytest.mark.parametrize(
    "wider",
    [
        cut(0.2),
        cut(0.4, alpha=0.5),
        cut(0.3, pruning_criterion="lamp", pruning_scope="layer"),
        {"pruning_method": "l1_unstructured", "pruning_ratio": 0.9},
        {"pruning_method": "nm_2_4"},
        cut(0.0),
        cut(0.0, precision="fp32"),
    ],
)
def test_a_wider_shape_is_over_by_as_much_at_least(wider: dict[str, object]) -> None:
    assert known((cut(0.4), {SIZE: 0.1, LATENCY: 0.2})).excess(wider) == {SIZE: 0.1, LATENCY: 0.2}


@pytest.mark.parametrize(
    "other",
    [
        cut(0.45),
        cut(0.2, precision="fp16"),
        cut(0.2, precision="int8_ptq"),
        cut(0.2, pruning_criterion="bn_scale"),
        cut(0.2, pruning_scope="global"),
    ],
)
def test_a_narrower_or_unlike_shape_is_not_judged(other: dict[str, object]) -> None:
    assert known((cut(0.4), {SIZE: 0.1})).excess(other) == {}


def test_the_largest_bound_holds() -> None:
    shapes = known((cut(0.4), {SIZE: 0.1}), (cut(0.3), {SIZE: 0.2}), (cut(0.1), {SIZE: 0.9}))
    assert shapes.excess(cut(0.2)) == {SIZE: 0.2}


def test_a_latency_at_the_limit_speaks_for_its_own_shape_only() -> None:
    shapes = known((cut(0.4), {LATENCY: 0.03}))
    assert shapes.excess(cut(0.35)) == {}
    assert shapes.excess(cut(0.4, alpha=0.2)) == {LATENCY: 0.03}


def test_what_is_kept_and_what_training_decides_rules_nothing_out() -> None:
    shapes = known((cut(0.4), {SIZE: 0.0, LATENCY: -0.5, DROP: 3.0}), (cut(0.4, pruning_scope="global"), {SIZE: 1.0}))
    assert shapes.excess(cut(0.2)) == {}


def test_a_dense_student_over_its_limits_says_nothing_of_pruned_ones() -> None:
    shapes = known(({"pruning_method": "l1_unstructured", "pruning_ratio": 0.3}, {LATENCY: 0.5}))
    assert shapes.excess(cut(0.05)) == {}
    assert shapes.excess({"pruning_method": "l1_unstructured", "pruning_ratio": 0.6}) == {LATENCY: 0.5}
