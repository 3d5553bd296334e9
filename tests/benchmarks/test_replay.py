import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from replay import STOPPERS, Replay, main, score, simulate
from replay_table import Table, read_table, record_table

from analysis.findings.pareto import non_dominated
from sweeps.search.sampling.samplers import make_sampler
from trainables.files import write_text
from trainables.records.encoding import to_json
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord

STUDENT, RECOVERY = 6, 2


def row(temperature: float, learning_rate: float, method: str, ratio: float, seed: int = 0) -> dict[str, Any]:
    """A candidate whose student keeps its rank while it trains, and then loses what pruning costs."""
    student = 0.95 - 0.02 * (temperature - 4) ** 2 - 0.05 * abs(math.log10(learning_rate) + 3) + 0.001 * seed
    final = student - (0.4 if method == "structured" else 0.1) * ratio**2
    kept = 1 - ratio if method == "structured" else 1.0
    values = {
        "key": f"grid/{temperature}-{learning_rate}-{method}-{ratio}-{seed}",
        "seed": seed,
        "temperature": temperature,
        "learning_rate": learning_rate,
        "pruning_method": method,
        "pruning_ratio": ratio,
        "student_epochs": STUDENT,
        "recovery_epochs": RECOVERY,
        "val_accuracy": final,
        "latency_p50_ms": 2 * kept,
        "reference_latency_p50_ms": 4.0,
        "size_bytes": int(1e6 * kept),
        "num_val": 5000,
        "teacher_latency_p50_ms": 4.0,
        "teacher_size_bytes": 4_000_000,
        "reference_error_points": 90.0,
    }
    for step in range(1, STUDENT + RECOVERY + 1):
        accuracy = student * (0.4 + 0.6 * step / STUDENT) if step <= STUDENT else final * (step + 2) / 10
        values |= {f"epoch_{step:03}_val_accuracy": accuracy, f"epoch_{step:03}_seconds": 1.0 + 0.25 * step}
    return values


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    methods = ("structured", "l1_unstructured")
    points = itertools.product((2.0, 4.0, 6.0), (1e-4, 1e-3, 1e-2), methods, (0.0, 0.2, 0.4, 0.6))
    return pd.DataFrame([row(*point) for point in points])


@pytest.fixture(scope="module")
def table(frame: pd.DataFrame) -> Table:
    return Table(frame)


class Best(optuna.samplers.RandomSampler):
    """Proposes the table's front, the rest after it."""

    def __init__(self, table: Table) -> None:
        super().__init__(seed=0)
        front = non_dominated(table.axes)
        self._rows = iter([table.rows[number] for number in np.argsort(~front, kind="stable")])

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {name: self._now[name] for name in search_space}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        self._now = next(self._rows)
        return dict(trial.relative_search_space if hasattr(trial, "relative_search_space") else {})

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return self._now[name]


def run(table: Table, sampler: str = "random", stopper: str = "none", seed: int = 0, **how: Any) -> Replay:
    return simulate(table, make_sampler(sampler, seed=seed), STOPPERS[stopper](STUDENT + RECOVERY), **how)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
@pytest.mark.parametrize("stopper", STOPPERS)
def test_a_seed_gives_the_same_sweep_again(table: Table, sampler: str, stopper: str) -> None:
    one, two = (run(table, sampler, stopper, seed=3, budget_s=150) for _ in range(2))
    assert one.finished == two.finished
    assert run(table, sampler, stopper, seed=4, budget_s=150).finished != one.finished


def test_simulated_time_adds_up(table: Table) -> None:
    whole = sum(map(sum, table.seconds)) + 0.5 * len(table.rows)
    alone = run(table, workers=1, overhead_s=0.5)
    assert alone.busy_s == pytest.approx(whole)
    assert alone.finished[-1][0] == pytest.approx(whole)
    four = run(table, workers=4, overhead_s=0.5)
    assert four.busy_s == pytest.approx(whole)
    assert four.finished[-1][0] == pytest.approx(whole / 4)  # all trials take equally long, four divides their number
    assert len(alone.finished) == len(four.finished) == len(table.rows)
    assert alone.hypervolume[-1] == pytest.approx(1.0)


def test_a_budget_cuts_what_is_running(table: Table) -> None:
    trial_s = sum(table.seconds[0])
    done = run(table, workers=2, budget_s=2.5 * trial_s)
    assert [when for when, _ in done.finished] == pytest.approx([trial_s, trial_s, 2 * trial_s, 2 * trial_s])
    assert done.started == 6
    assert done.at(0.99 * trial_s) == 0.0
    assert done.at(math.inf) == done.hypervolume[-1]
    assert done.time_to(done.hypervolume[0]) == pytest.approx(trial_s)
    assert done.time_to(1.01) == math.inf


def test_no_recorded_trial_is_used_twice_and_the_study_knows_the_one_it_got(table: Table) -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    seen: list[optuna.Study] = []
    sampler.after_trial = lambda study, trial, state, values: seen.append(study)
    done = simulate(table, sampler, FIFOScheduler(), workers=3)
    assert sorted(row for _, row in done.finished) == list(range(len(table.rows)))
    known = {tuple(trial.params[name] for name in table.searched) for trial in seen[-1].trials}
    assert known == {tuple(row[name] for name in table.searched) for row in table.rows}


def test_a_perfect_sampler_beats_random(table: Table) -> None:
    budget = sum(table.seconds[0]) * 12
    best = simulate(table, Best(table), FIFOScheduler(), workers=1, budget_s=budget)
    others = [run(table, seed=seed, workers=1, budget_s=budget) for seed in range(10)]
    assert all(best.at(share * budget) > other.at(share * budget) for other in others for share in (0.5, 1.0))


def test_the_pareto_stopper_saves_time_and_loses_nothing_where_ranks_are_kept(table: Table) -> None:
    for seed in range(5):
        free, stopped = run(table, seed=seed), run(table, stopper="pareto", seed=seed)
        assert stopped.hypervolume[-1] == pytest.approx(1.0)
        assert stopped.stopped > 0.3 * len(table.rows)
        assert stopped.busy_s < 0.8 * free.busy_s
        assert stopped.busy_s > 0.25 * free.busy_s, "nobody is stopped before the grace is over"


@pytest.mark.parametrize("stopper", ["pareto", "composite"])
def test_the_best_score_survives_either_stopper_where_ranks_are_kept(table: Table, stopper: str) -> None:
    best = max(map(score, table.rows))
    for seed in range(5):
        done = run(table, stopper=stopper, seed=seed)
        assert max(score(table.rows[number]) for _, number in done.finished) == pytest.approx(best)


@pytest.mark.parametrize("objective", ["pareto", "composite"])
@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_every_arm_runs(table: Table, sampler: str, objective: str) -> None:
    scheduler: TrialScheduler = STOPPERS[objective](STUDENT + RECOVERY)
    done = simulate(table, make_sampler(sampler, seed=0), scheduler, objective=objective, budget_s=100)
    assert done.finished
    assert 0 < done.hypervolume[-1] <= 1
    assert (np.diff(done.hypervolume) >= 0).all()


def test_one_training_seed_of_every_point_is_drawn(frame: pd.DataFrame) -> None:
    again = frame.assign(seed=1, val_accuracy=frame["val_accuracy"] - 0.01)
    both = pd.concat([frame, again], ignore_index=True)
    draws = [[row["seed"] for row in Table.drawn(both, seed).rows] for seed in range(3)]
    assert all(len(draw) == len(frame) and set(draw) == {0, 1} for draw in draws)
    assert draws[0] != draws[1]


def test_the_nearest_of_a_recorded_point_is_itself_while_it_is_free(table: Table) -> None:
    free = np.ones(len(table.rows), dtype=bool)
    for number, recorded in enumerate(table.rows):
        assert table.nearest(recorded, free) == number
        free[number] = False


def test_main_prints_every_arm(frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.csv.gz"
    frame.to_csv(file, index=False)
    main(["--table", str(file), "--seeds", "2", "--samplers", "random", "tpe", "--budget", "0.3"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    arms = [(line[1].strip(), line[2].strip()) for line in lines[2:]]
    assert arms == list(itertools.product(("random", "tpe"), STOPPERS))


# Recording.


def sweep(out: Path, name: str, rows: list[dict[str, Any]], *, teacher_size: int = 4_000_000) -> None:
    """A sweep's folder as the launcher and its trials leave it."""
    folder = out / "sweeps" / name
    for number, values in enumerate(rows):
        place = folder / "trials" / f"{number:05}"
        place.mkdir(parents=True)
        measured = ("val_accuracy", "latency_p50_ms", "reference_latency_p50_ms", "size_bytes", "num_val")
        params = ("temperature", "learning_rate", "pruning_method", "pruning_ratio", "seed")
        curve = tuple(epoch(values, step) for step in range(1, STUDENT + RECOVERY + 1))
        record = TrialRecord(
            key=f"{name}/{number:05}",
            trial_number=number,
            stage="candidate",
            status=values.get("status", "finished"),
            reason="",
            params={key: values[key] for key in params} | {"student_epochs": STUDENT, "recovery_epochs": RECOVERY},
            metrics={key: values[key] for key in measured},
            tags={},
            curve=curve,
            files=(),
            started=0.0,
            ended=1.0,
        )
        write_text(place / "record.json", to_json(record))
    teacher = {"latency_p50_ms": 4.0, "size_bytes": teacher_size}
    write_text(folder / "sweep.json", to_json({"teacher": teacher, "reference_point": {"error_points": 90.0}}))


def epoch(values: dict[str, Any], step: int) -> EpochRecord:
    stage, number, of = ("student", step, STUDENT) if step <= STUDENT else ("recovery", step - STUDENT, RECOVERY)
    return EpochRecord(
        stage=stage,
        epoch=number,
        epochs=of,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.0,
        val_accuracy=values[f"epoch_{step:03}_val_accuracy"],
        learning_rate=1e-3,
        seconds=values[f"epoch_{step:03}_seconds"],
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz"])
def test_recorded_sweeps_replay_like_the_table_they_came_from(
    frame: pd.DataFrame, table: Table, tmp_path: Path, suffix: str
) -> None:
    rows = [{str(name): value for name, value in values.items()} for values in frame.to_dict("records")]
    sweep(tmp_path, "first", rows[:40])
    sweep(tmp_path, "second", [*rows[40:], row(4.0, 1e-3, "structured", 0.5) | {"status": "stopped"}])
    file = tmp_path / f"table.{suffix}"
    main(["--record", str(tmp_path), "--sweep", "first", "second", "--table", str(file)])
    recorded = read_table(file)
    assert recorded["key"].tolist() == [f"first/{n:05}" for n in range(40)] + [f"second/{n:05}" for n in range(32)]
    again = Table(recorded)
    assert set(again.searched) == set(table.searched)
    assert again.best == pytest.approx(table.best)
    assert run(again, stopper="pareto").busy_s > 0


def test_sweeps_that_cannot_be_one_table_are_refused(tmp_path: Path) -> None:
    sweep(tmp_path, "a", [row(2.0, 1e-3, "structured", 0.2)])
    sweep(tmp_path, "b", [row(4.0, 1e-3, "structured", 0.2)], teacher_size=5_000_000)
    sweep(tmp_path, "c", [row(4.0, 1e-3, "structured", 0.2) | {"status": "failed"}])
    with pytest.raises(ValueError, match="a, b had different teachers"):
        record_table(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match="no finished trial of c"):
        record_table(tmp_path, ["c"])
