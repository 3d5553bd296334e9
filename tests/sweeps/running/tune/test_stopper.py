import dataclasses
import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from ray import tune

from sweeps.running.tune.stopper import FrontStopper
from sweeps.search.config import Search
from sweeps.search.sampling.searcher import StudySearcher
from trainables.config.compression import PruneConfig
from trainables.config.score import ExchangeRates, composite_score

EPOCHS = 8  # with eta = 3 and a grace of 25 %: rungs after epochs 2 and 6
NUM_VAL = 5000
RATES = ExchangeRates(latency_points=1.0, size_points=0.5)


def trial(key: str, **candidate: Any) -> SimpleNamespace:
    prune = dataclasses.replace(PruneConfig(), **candidate)
    task = SimpleNamespace(key=key, candidate=SimpleNamespace(prune=prune), trial_number=0, alone=False)
    return SimpleNamespace(trial_id=f"tune-{key}", config={"task": task})


def epoch(accuracy: float, *, step: int = 2, ms: float = 1.0, megabytes: float = 1.0, **more: Any) -> dict[str, Any]:
    """Six student epochs, then two of recovery."""
    stage = {"stage": "student", "epoch": step} if step <= 6 else {"stage": "recovery", "epoch": step - 6}
    shape = {"latency_p50_ms": ms, "reference_latency_p50_ms": 4.0, "size_bytes": int(megabytes * 1e6)}
    planned = {"step": step, "steps": EPOCHS, "num_val": NUM_VAL, "final": False}
    return stage | shape | planned | {"val_accuracy": accuracy} | more


def task(number: int, quality: float) -> SimpleNamespace:
    made = trial(f"s/{number:05}").config["task"]
    made.quality = quality
    return made


def judge(stopper: FrontStopper, who: SimpleNamespace, result: dict[str, Any]) -> str:
    return stopper.on_trial_result(None, who, result)


STRUCTURED = {"pruning_method": "structured", "pruning_of": "channels"}


@pytest.mark.parametrize("missing", ["step", "steps", "num_val", "size_bytes", "latency_p50_ms", "val_accuracy"])
def test_reports_of_the_teacher_and_final_ones_decide_nothing(missing: str) -> None:
    stopper = FrontStopper("pareto", RATES, None)
    for who, accuracy in (("good", 0.9), ("bad", 0.1)):
        result = epoch(accuracy)
        del result[missing]
        assert judge(stopper, trial(who), result) == "CONTINUE"
        assert judge(stopper, trial(who), result | {missing: None}) == "CONTINUE"
        assert judge(stopper, trial(who), epoch(accuracy, final=True)) == "CONTINUE"
        assert judge(stopper, trial(who), {"stage": "shape", "final": False}) == "CONTINUE"
    assert judge(stopper, trial("bad"), epoch(0.1)) == "CONTINUE", "nothing was recorded so far"


@pytest.mark.parametrize("objective", ["pareto", "composite"])
def test_before_pruning_a_student_that_will_be_pruned_harder_stops_nobody(objective: str) -> None:
    """Found on digits: by its student alone a candidate at ratio 0.65 leads one at 0.1 that ends 31 points better."""
    stopper = FrontStopper(objective, RATES, None)
    hard, mild = trial("hard", pruning_ratio=0.65, **STRUCTURED), trial("mild", pruning_ratio=0.1, **STRUCTURED)
    assert judge(stopper, hard, epoch(0.90, ms=0.5, megabytes=0.3)) == "CONTINUE"
    assert judge(stopper, mild, epoch(0.80)) == "CONTINUE"
    same = trial("same", pruning_ratio=0.1, **STRUCTURED)
    assert judge(stopper, same, epoch(0.70)) == "STOP"


def test_students_are_compared_within_one_pruning_method() -> None:
    stopper = FrontStopper("pareto", RATES, None)
    judge(stopper, trial("a", pruning_ratio=0.2, **STRUCTURED), epoch(0.9))
    other = trial("b", pruning_ratio=0.2, pruning_method="l1_unstructured", pruning_of="channels")
    assert judge(stopper, other, epoch(0.5)) == "CONTINUE"


def test_the_first_epoch_after_pruning_is_a_rung_where_shapes_compare() -> None:
    stopper = FrontStopper("pareto", RATES, None)
    less, more = trial("less", pruning_ratio=0.2, **STRUCTURED), trial("more", pruning_ratio=0.5, **STRUCTURED)
    assert judge(stopper, more, epoch(0.9, step=7, ms=0.5)) == "CONTINUE"
    assert judge(stopper, less, epoch(0.8, step=7, ms=0.6)) == "STOP"
    assert judge(stopper, trial("fast", pruning_ratio=0.7, **STRUCTURED), epoch(0.5, step=7, ms=0.1)) == "CONTINUE"


@given(st.floats(0, 1), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.1, 100))
@settings(max_examples=50)
def test_composite_ranks_by_the_sweeps_own_score(accuracy: float, ms: float, reference: float, size: float) -> None:
    """Two trials one above, one below 0.5 points' distance: the stopper agrees with `composite_score` on who leads."""
    stopper = FrontStopper("composite", RATES, None)
    first = epoch(0.5, step=7, num_val=10**12)
    second = epoch(accuracy, step=7, ms=ms, megabytes=size, reference_latency_p50_ms=reference, num_val=10**12)
    lead = np.diff([composite_score(row, teacher_size_bytes=1e6, rates=RATES) for row in (second, first)])[0]
    judge(stopper, trial("first"), first)
    decision = judge(stopper, trial("second"), second)
    if abs(lead) > 1e-3:
        assert decision == ("STOP" if lead > 0 else "CONTINUE")


def test_a_resumed_sweep_has_its_rungs_again(tmp_path: Path) -> None:
    path = tmp_path / "sweeps" / "s" / "rungs.jsonl"
    judge(FrontStopper("pareto", RATES, path), trial("s/00000"), epoch(0.9))
    resumed = FrontStopper("pareto", RATES, path)
    assert judge(resumed, trial("s/00001"), epoch(0.5)) == "STOP"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["rung"], row["trial"], row["beaten_by"]) for row in rows] == [
        ("25% student structured channels layer", "s/00000", None),
        ("25% student structured channels layer", "s/00001", "s/00000"),
    ]  # fmt: skip
    restarted = SimpleNamespace(trial_id="another id", config=trial("s/00001").config)
    assert judge(FrontStopper("pareto", RATES, path), restarted, epoch(0.99)) == "STOP"
    assert sorted(file.name for file in path.parent.iterdir()) == ["rungs.jsonl"]


def test_a_trial_that_was_to_stop_is_stopped_at_its_next_epoch_after_a_restart(tmp_path: Path) -> None:
    """Its rung's epoch is in the store, so that the resumed trial never reports it again."""
    path = tmp_path / "rungs.jsonl"
    stopper = FrontStopper("pareto", RATES, path)
    judge(stopper, trial("s/00000"), epoch(0.9))
    assert judge(stopper, trial("s/00001"), epoch(0.5)) == "STOP"
    later = epoch(0.6, step=3)
    resumed = FrontStopper("pareto", RATES, path)
    assert judge(resumed, trial("s/00001"), later) == "STOP"
    assert judge(resumed, trial("s/00000"), later) == "CONTINUE"


def test_half_a_line_of_a_driver_that_died_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rungs.jsonl"
    judge(FrontStopper("pareto", RATES, path), trial("s/00000"), epoch(0.9))
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    judge(FrontStopper("pareto", RATES, path), trial("s/00001"), epoch(0.5))
    assert path.read_text().startswith(whole)
    assert [json.loads(line)["trial"] for line in path.read_text().splitlines()] == ["s/00000", "s/00001"]


@pytest.mark.parametrize("text", ["[]\n", "1\n", '{"version": 1}\n', '{"rung": "1/4", "trial": "s/00000"}\n'])
def test_a_file_that_holds_no_rungs_is_named_with_the_fix(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rungs.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rungs\.jsonl holds no rungs .*delete it"):
        FrontStopper("pareto", RATES, path)


def test_a_disk_that_cannot_be_written_does_not_end_the_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    stopper = FrontStopper("pareto", RATES, tmp_path / "file" / "rungs.jsonl")
    with caplog.at_level(logging.WARNING):
        assert judge(stopper, trial("good"), epoch(0.9)) == "CONTINUE"
        assert judge(stopper, trial("bad"), epoch(0.5)) == "STOP"
    assert "could not be written" in caplog.text


def test_it_can_be_pickled_with_what_it_knows() -> None:
    stopper = FrontStopper("pareto", RATES, None)
    judge(stopper, trial("good"), epoch(0.9))
    again = pickle.loads(pickle.dumps(stopper))
    assert judge(again, trial("bad"), epoch(0.5)) == "STOP"
    assert again.debug_string() == "FrontStopper: 1 trials stopped."
    assert stopper.debug_string() == "FrontStopper: 0 trials stopped."


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="objective='accuracy'"):
        FrontStopper("accuracy", RATES, None)


def probe() -> type[tune.Trainable]:
    """A trainable that learns `quality` tenths in eight even steps; defined in here so that Ray pickles all of it."""

    class Probe(tune.Trainable):
        def step(self) -> dict[str, Any]:
            step = self.iteration + 1
            shape = {"latency_p50_ms": 1.0, "reference_latency_p50_ms": 4.0, "size_bytes": 10**6, "macs": 10**6}
            accuracy = self.config["task"].quality / 10 * min(step, 8) / 8
            if step > 8:
                return shape | {"val_accuracy": accuracy, "final": True, "done": True}
            planned = {"stage": "student", "epoch": step, "step": step, "steps": 8, "num_val": 10_000, "final": False}
            return shape | planned | {"val_accuracy": accuracy}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...
        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return Probe


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tune_stops_the_trial_and_optuna_is_told_pruned(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for quality in (9.0, 2.0, 8.9, 1.0):
        study.enqueue_trial({"learning_rate": quality})
    searcher = StudySearcher(
        study,
        Search(
            space={"learning_rate": FloatDistribution(1, 9)},
            sampler="random",
            objective="composite",
            reuse_probability=0.0,
        ),
        tune_config=lambda number, params: {"task": task(number, params["learning_rate"])},
        score=lambda metrics: 100 * metrics["val_accuracy"],
    )
    grid = tune.Tuner(
        probe(),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=FrontStopper("pareto", RATES, tmp_path / "rungs.jsonl"),
            num_samples=4,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="s",
            storage_path=str(tmp_path / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()
    assert sorted(result.metrics["training_iteration"] for result in grid) == [2, 2, 9, 9]
    states = {t.params["learning_rate"]: t.state for t in study.get_trials()}
    assert states == {
        9.0: TrialState.COMPLETE,
        2.0: TrialState.PRUNED,
        8.9: TrialState.COMPLETE,  # 0.25 points behind at the first rung: within the noise of 10,000 images
        1.0: TrialState.PRUNED,
    }
