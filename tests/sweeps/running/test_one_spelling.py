"""One candidate has one spelling: task, keys, recipe, records of every kind, MLflow and CSV agree byte for byte."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.reading.rows import _typed
from sweeps.running.run import worker_of
from sweeps.running.tune.delivery import write_record
from sweeps.search.presets import PRESETS, quick
from sweeps.search.space import Space, default_space, identify, parse, suggest, tidy
from trainables.config.candidate import KD_LOSSES, Candidate, CandidateConfig, StudentConfig
from trainables.config.compression import PRECISIONS, PRUNING_CRITERIA, PRUNING_METHODS, PRUNING_SCOPES
from trainables.records.encoding import to_json
from trainables.records.trial import read_trial
from trainables.trials.task import TrialTask

IMAGES = SimpleNamespace(name="folder:photos", image_size=48, unlabeled="0123456789abcdef")
WIDE = {
    "kd_loss": ",".join(KD_LOSSES),
    "pruning_method": ",".join(PRUNING_METHODS),
    "pruning_criterion": ",".join(PRUNING_CRITERIA),
    "pruning_scope": ",".join(PRUNING_SCOPES),
    "precision": ",".join(PRECISIONS),
    "student_model": "teacher,alexnet_small",
}
BASES = [
    *(preset().search.base for preset in PRESETS.values()),
    CandidateConfig().replace(dataset="folder:/home/me/photos", kd_loss="none", temperature=2.5, qat_epochs=3),
    CandidateConfig().replace(student_model="teacher", prune_ignore="conv1", student_pretrained=True),
    CandidateConfig().replace(unlabeled="/home/me/more"),
    CandidateConfig().replace(pruning_steps=3, pruning_ratio=0.0, calibration_images=7, crop="none"),
]

spaces = st.dictionaries(st.sampled_from(sorted(WIDE)), st.booleans()).map(
    lambda asked: default_space() | {name: parse(name, WIDE[name]) for name, on in asked.items() if on}
)


def proposed(space: Space, base: CandidateConfig, seed: int) -> dict[str, Any]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask(), space, base)


def candidate_of(params: dict[str, Any], base: CandidateConfig) -> Candidate:
    return base.replace(**tidy(params)).resolve(IMAGES, device="cpu")


def task_of(candidate: Candidate, folder: Path) -> TrialTask:
    return TrialTask(candidate=candidate, worker=worker_of(quick()), key="s/00003", folder=folder, trial_number=3)


@given(spaces, st.sampled_from(BASES), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_proposal_of_every_space_has_one_spelling(space: Space, base: CandidateConfig, seed: int) -> None:
    params = proposed(space, base, seed)
    candidate = candidate_of(params, base)
    row = candidate.flat()
    text = to_json(row)
    assert "/home/me" not in text
    assert CandidateConfig().replace(**json.loads(text)).resolve(IMAGES, device="cpu") == candidate
    assert candidate.replace(**row).resolve(IMAGES, device="cuda") == candidate, (
        "it is canonical, and stays where it is"
    )
    carried = pickle.loads(pickle.dumps(task_of(candidate, Path("trial")).tune_config()))["task"]
    assert to_json(carried.row()) == text
    recipe = candidate.recipe()
    assert recipe.items() <= row.items() and row.keys() - recipe.keys() == vars(candidate.measure).keys()
    for name, value in params.items():
        assert row[name] == value or identify(params | {name: row[name]}, base) == identify(params, base), name
    for name, value in row.items():
        (read,) = _typed([str(value)])
        assert read == value or (value is None and read == "None"), f"{name} comes back from MLflow as {read!r}"


@given(spaces, st.sampled_from(BASES), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_two_proposals_are_one_trial_if_and_only_if_their_rows_are_one(
    space: Space, base: CandidateConfig, one: int, other: int
) -> None:
    first, second = (proposed(space, base, seed) for seed in (one, other))
    same = candidate_of(first, base).flat() == candidate_of(second, base).flat()
    assert same == (identify(first, base) == identify(second, base))


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_trial_that_did_not_finish_is_spelled_like_one_that_did(tmp_path: Path, status: str) -> None:
    """Stopped trials used to record image_size=None, and settings that nothing reads."""
    base = quick().search.base.replace(alpha=0.0, temperature=2.5, pruning_ratio=0.0, pruning_method="l1_global")
    candidate = candidate_of({}, base)
    write_record(task_of(candidate, tmp_path / "00003"), status=status, reason="r", seconds=1.0)
    written = read_trial(tmp_path / "00003").params
    assert to_json(dict(written)) == to_json(candidate.flat())
    assert (written["image_size"], written["kd_loss"], written["temperature"]) == (
        48,
        "none",
        StudentConfig.temperature,
    )
    assert (written["pruning_method"], written["dataset"]) == ("structured", "folder:photos")
