"""A sweep that goes on with more than it began with: wider lists and ranges, new parameters, other objectives."""

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError, check_identity
from sweeps.search.presets import quick
from sweeps.search.space import parse
from sweeps.search.study_file import contains, holds
from tests.sweeps.search.sampling.test_searcher import FINAL, ask, driver, space_of
from trainables.records.stages import DatasetRecord

# Of options of Optuna's samplers that it calls experimental; sweeps use them, and are silent about it.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
IMAGES = DatasetRecord(
    name="digits",
    folder=Path(),
    fingerprint="f" * 64,
    class_names=("a", "b"),
    image_size=32,
    num_train=2,
    num_val=2,
    num_test=2,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def sweep(tmp_path: Path, objective: str = "composite", **space: str) -> SweepConfig:
    return quick().replace(name="night", out=tmp_path, objective=objective, space=space_of(**space))


def begun(config: SweepConfig, *, told: int, asked: int) -> list[dict]:
    """A sweep whose driver died with some trials told and some running; the parameters of all."""
    config.folder.mkdir(parents=True, exist_ok=True)
    check_identity(config, IMAGES)
    study, searcher = driver(config.folder, config.search.space, objective=config.search.objective)
    ask(searcher, asked)
    for number in range(told):
        searcher.on_trial_complete(f"t{number}", FINAL | {"excess": {"max_drop": -0.5}})
    return [trial.params for trial in study.trials[:asked]]


def test_lists_and_ranges_may_grow_and_a_new_parameter_may_come(tmp_path: Path) -> None:
    first = sweep(tmp_path, learning_rate="1e-3,3e-3", alpha="0.5:0.9")
    params = begun(first, told=3, asked=4)
    wider = sweep(
        tmp_path, learning_rate="3e-4,1e-3,3e-3", alpha="0.3:1.0", pruning_method="structured,l1_unstructured"
    )
    identity = check_identity(first, IMAGES)
    study, _ = driver(first.folder, first.search.space)
    study.set_user_attr("far_cuts", 1)
    before = study.user_attrs
    assert check_identity(wider, IMAGES) == identity
    study, searcher = driver(wider.folder, wider.search.space)
    assert study.user_attrs == before
    assert [trial.params for trial in study.trials[:4]] == params
    assert [trial.state for trial in study.trials[:4]] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert {trial.constraints["max_drop"] for trial in study.trials[:3]} == {-0.5}
    configs = ask(searcher, 8, name="more")
    assert configs[0]["trial_number"] == 3
    assert any(config["params"]["learning_rate"] == 3e-4 for config in configs)
    assert (wider.folder / "study.journal.1").exists()


def test_other_images_without_labels_make_another_sweep(tmp_path: Path) -> None:
    config = sweep(tmp_path, alpha="0.5:0.9")
    config = config.replace(base=config.search.base.replace(unlabeled="more"))
    config.folder.mkdir(parents=True)
    identity = check_identity(config, replace(IMAGES, unlabeled="0123"))
    assert check_identity(config, replace(IMAGES, unlabeled="0123")) == identity
    with pytest.raises(InputError, match="digest of the images without labels=0123, not 4567; take another --name"):
        check_identity(config, replace(IMAGES, unlabeled="4567"))


def test_what_was_fixed_may_be_searched(tmp_path: Path) -> None:
    first = sweep(tmp_path, alpha="0.5:0.9")
    space = {name: values for name, values in first.search.space.items() if name != "learning_rate"}
    first = first.replace(space=space, base=first.search.base.replace(learning_rate=1e-3))
    begun(first, told=2, asked=2)
    wider = first.replace(space={**space, "learning_rate": parse("learning_rate", "1e-3,3e-3")})
    check_identity(wider, IMAGES)
    study, _ = driver(wider.folder, wider.search.space)
    assert [trial.params["learning_rate"] for trial in study.trials[:2]] == [1e-3, 1e-3]


def test_the_objective_may_change_both_ways(tmp_path: Path) -> None:
    begun(sweep(tmp_path, alpha="0.5:0.9"), told=2, asked=2)
    three = sweep(tmp_path, "pareto", alpha="0.5:0.9")
    check_identity(three, IMAGES)
    study, searcher = driver(three.folder, three.search.space, objective="pareto")
    assert study.trials[0].values == [0.9, 1.5, 1_000_000]
    ask(searcher, 1, name="more")
    check_identity(sweep(tmp_path, alpha="0.5:0.9"), IMAGES)
    study, _ = driver(three.folder, three.search.space)
    assert study.trials[0].value == pytest.approx(90.0)


def test_the_same_settings_leave_the_journal_alone(tmp_path: Path) -> None:
    config = sweep(tmp_path, alpha="0.5:0.9")
    begun(config, told=1, asked=2)
    before = (config.folder / "study.journal").read_bytes()
    check_identity(config, IMAGES)
    assert (config.folder / "study.journal").read_bytes() == before


@pytest.mark.parametrize(
    ("space", "named"),
    [({"alpha": "0.6:0.9"}, "alpha"), ({"alpha": "0.5"}, "alpha"), ({"learning_rate": "3e-3"}, "learning_rate")],
    ids=["narrower", "one value", "another value"],
)
def test_a_space_that_lacks_what_was_tried_is_refused(tmp_path: Path, space: dict[str, str], named: str) -> None:
    begun(sweep(tmp_path, alpha="0.5:0.9"), told=1, asked=1)
    with pytest.raises(InputError, match=f"--name night: that sweep was made with {named}="):
        check_identity(sweep(tmp_path, **{"alpha": "0.5:0.9", **space}), IMAGES)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ("0:1", "0.5:0.9", True),
        ("0.05:1", "0.5:0.9", False),  # another grid
        ("0.5:0.9", "0.5:0.9", True),
        ("0.5:0.8", "0.5:0.9", False),
        ("0:1", "0.5,0.9", True),
        ("0.5,0.7,0.9", "0.5,0.9", True),
        ("0.5,0.9", "0.5:0.9", False),
    ],
)
def test_one_range_holds_another(new: str, old: str, expected: bool) -> None:
    assert holds(parse("alpha", new), parse("alpha", old)) is expected


def test_rounding_does_not_count() -> None:
    assert contains(parse("alpha", "0:1"), 0.1 + 0.2)
    assert not contains(parse("alpha", "0:1"), 0.25)
