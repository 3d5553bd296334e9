import dataclasses

import pytest

from trainables.configs import AugmentConfig, CandidateConfig, DataConfig, PruneConfig, StudentConfig
from trainables.flags import field_docs


def test_field_names_are_unique_across_parts_so_that_a_candidate_is_one_row() -> None:
    config = CandidateConfig()
    names = [f.name for part in dataclasses.fields(config) for f in dataclasses.fields(getattr(config, part.name))]
    assert len(names) == len(set(names)) == len(config.flat())


def test_every_field_says_its_unit() -> None:
    for part in dataclasses.fields(CandidateConfig()):
        value = getattr(CandidateConfig(), part.name)
        assert set(field_docs(type(value))) == {f.name for f in dataclasses.fields(value)}


def test_flat_and_back() -> None:
    config = CandidateConfig().replace(alpha=0.5, dataset="cifar10", train_limit=100)
    assert CandidateConfig.from_flat(config.flat()) == config
    assert config.student.alpha == 0.5


def test_replace_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="alfa"):
        CandidateConfig().replace(alfa=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StudentConfig(alpha=1.5), r"0 <= alpha <= 1.*alpha=1.5"),
        (lambda: StudentConfig(alpha=float("nan")), r"alpha=nan"),
        (lambda: StudentConfig(temperature=0.0), r"temperature > 0.*temperature=0.0"),
        (lambda: StudentConfig(learning_rate=-1.0), r"learning_rate > 0.*learning_rate=-1.0"),
        (lambda: StudentConfig(student_epochs=-1), r"student_epochs >= 0.*student_epochs=-1"),
        (lambda: PruneConfig(pruning_ratio=1.0), r"0 <= pruning_ratio < 1.*pruning_ratio=1.0"),
        (lambda: PruneConfig(pruning_method="l2"), r"pruning_method.*'l2'"),
        (lambda: DataConfig(val_fraction=0.0), r"val_fraction=0.0"),
        (lambda: DataConfig(train_limit=1), r"train_limit=1"),
        (lambda: AugmentConfig(crop="zoom"), r"crop='zoom'"),
        (lambda: AugmentConfig(mixup_alpha=0.0), r"mixup_alpha=0.0"),
    ],
)
def test_out_of_range_values_are_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
