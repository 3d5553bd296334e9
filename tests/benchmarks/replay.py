"""Compares samplers and stoppers in simulated time, against trials that a real sweep has recorded.

    python tests/benchmarks/replay.py --record runs --sweep grid --table grid.parquet
    python tests/benchmarks/replay.py --table grid.parquet --seeds 20

Record sweeps that were made without a stopper and with `--sampler random` or `grid`: a table holds finished trials
only, and what one sampler liked is no fair ground for another. Every trial costs all of its epochs, as if the store
had been empty.
"""

import argparse
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from replay_table import MEASURED, Table, read_table, record_table

from analysis.findings.pareto import hypervolume_over_trials
from sweeps.running.tune.stopper import FrontStopper
from sweeps.search.config import OBJECTIVES
from sweeps.search.objectives import study_directions, study_values
from sweeps.search.sampling.samplers import make_sampler
from trainables.config.compression import PruneConfig
from trainables.config.score import ExchangeRates, composite_score
from trainables.trials.task import TASK

FRACTIONS = (0.25, 0.5, 1.0)
GOAL = 0.95
PRUNING = {field.name for field in fields(PruneConfig)}
SAMPLERS = ("random", "tpe", "nsga2", "gp")
STOPPERS: Mapping[str, Callable[[int], TrialScheduler]] = {
    "none": lambda epochs: FIFOScheduler(),
    "pareto": lambda epochs: FrontStopper("pareto", ExchangeRates(), None),
    "composite": lambda epochs: FrontStopper("composite", ExchangeRates(), None),
    # As in Ray's documentation: accuracy alone, whatever a candidate costs.
    "asha": lambda epochs: AsyncHyperBandScheduler(
        metric="val_accuracy",
        mode="max",
        max_t=epochs,
        grace_period=math.ceil(epochs / 4),
        reduction_factor=3,
        stop_last_trials=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One simulated sweep."""

    finished: list[tuple[float, int]]
    """(simulated seconds, row) of every finished candidate, in time."""
    hypervolume: npt.NDArray[np.float64]
    """After each of them, as a share of the whole table's."""
    started: int
    """Trials."""
    stopped: int
    """Trials."""
    busy_s: float
    """Simulated seconds of all workers together, up to the last event."""

    def at(self, seconds: float) -> float:
        """The hypervolume found by then."""
        known = sum(when <= seconds for when, _ in self.finished)
        return float(self.hypervolume[known - 1]) if known else 0.0

    def time_to(self, share: float) -> float:
        """Seconds to a share of the table's hypervolume; infinity if it was not reached."""
        reached = np.flatnonzero(self.hypervolume >= share)
        return self.finished[reached[0]][0] if len(reached) else math.inf


def simulate(
    table: Table,
    sampler: optuna.samplers.BaseSampler,
    stopper: TrialScheduler,
    *,
    objective: str = "pareto",
    workers: int = 4,
    budget_s: float = math.inf,
    overhead_s: float = 0.0,
) -> Replay:
    """Run a sweep in simulated time until the budget or the table is used up.

    A proposal takes the nearest recorded point that is not used yet, and the study is corrected to it.

    Args:
        overhead_s: seconds of a trial after its last epoch, for export and measuring.
    """
    study = optuna.create_study(directions=study_directions(objective), sampler=sampler)
    free = np.ones(len(table.rows), dtype=bool)
    events: list[tuple[float, int, int, int, int]] = []  # time, order, row, step done, number in the study
    order = itertools.count()
    finished: list[tuple[float, int]] = []
    stopped, busy = 0, 0.0

    def start(now: float) -> None:
        if free.any():
            row, number = _propose(study, table, free)
            stopper.on_trial_add(None, _trial(table, row))
            heapq.heappush(events, (now + table.seconds[row][0], next(order), row, 1, number))

    for _ in range(workers):
        start(0.0)
    while events and events[0][0] <= budget_s:
        now, _, row, step, number = heapq.heappop(events)
        epochs = len(table.curves[row])
        busy += table.seconds[row][step - 1] if step <= epochs else overhead_s
        if step > epochs:
            finished.append((now, row))
            study.tell(number, study_values(objective, table.rows[row], score(table.rows[row])))
            start(now)
        elif stopper.on_trial_result(None, _trial(table, row), _report(table, row, step)) == TrialScheduler.STOP:
            stopped += 1
            study.tell(number, state=optuna.trial.TrialState.PRUNED)
            start(now)
        else:
            next_s = table.seconds[row][step] if step < epochs else overhead_s
            heapq.heappush(events, (now + next_s, next(order), row, step + 1, number))
    rows = [row for _, row in finished]
    found = hypervolume_over_trials(table.axes[rows], table.reference) if rows else np.zeros(0)
    return Replay(
        finished=finished, hypervolume=found / table.best, started=int((~free).sum()), stopped=stopped, busy_s=busy
    )


def _propose(study: optuna.Study, table: Table, free: npt.NDArray[np.bool_]) -> tuple[int, int]:
    trial = study.ask(fixed_distributions=table.space)
    row = table.nearest(trial.params, free)
    free[row] = False
    for name, distribution in table.space.items():
        value = table.rows[row][name]
        if not pd.isna(value):  # else the row has no such parameter
            study._storage.set_trial_param(trial._trial_id, name, distribution.to_internal_repr(value), distribution)
    return row, trial.number


def _trial(table: Table, row: int) -> SimpleNamespace:
    known = {name: value for name, value in table.rows[row].items() if name in PRUNING and not pd.isna(value)}
    task = SimpleNamespace(key=str(row), candidate=SimpleNamespace(prune=PruneConfig(**known)))
    return SimpleNamespace(trial_id=str(row), config={TASK: task})


def _report(table: Table, row: int, step: int) -> dict[str, Any]:
    recorded = table.rows[row]
    student = int(recorded["student_epochs"])
    stage = {"stage": "student", "epoch": step} if step <= student else {"stage": "recovery", "epoch": step - student}
    planned = {"step": step, "steps": len(table.curves[row]), "training_iteration": step, "final": False}
    return {name: recorded[name] for name in MEASURED} | stage | planned | {"val_accuracy": table.curves[row][step - 1]}


def score(row: Mapping[str, Any]) -> float:
    """A row's composite score in points."""
    return composite_score(row, teacher_size_bytes=row["teacher_size_bytes"], rates=ExchangeRates())


def compare(frame: pd.DataFrame, arms: argparse.Namespace) -> pd.DataFrame:
    """One row per sampler, stopper and seed: hypervolume at `FRACTIONS` of the budget, time to `GOAL`, best score."""
    rows = []
    for seed in range(arms.seeds):
        table = Table.drawn(frame, seed)
        whole = sum(map(sum, table.seconds)) + arms.overhead_s * len(table.rows)
        budget = arms.budget * whole / arms.workers
        for sampler, stopper in itertools.product(arms.samplers, arms.stoppers):
            scheduler = STOPPERS[stopper](max(map(len, table.curves)))
            done = simulate(
                table,
                make_sampler(sampler, seed=seed),
                scheduler,
                objective=arms.objective,
                workers=arms.workers,
                budget_s=budget,
                overhead_s=arms.overhead_s,
            )
            row = {"sampler": sampler, "stopper": stopper, "seed": seed}
            row |= {"started": done.started, "stopped": done.stopped}
            row["score"] = max((score(table.rows[number]) for _, number in done.finished), default=math.nan)
            row |= {f"{share:.0%}": 100 * done.at(share * budget) for share in FRACTIONS}
            rows.append(row | {"time_to_goal_s": done.time_to(GOAL)})
    return pd.DataFrame(rows)


def show(runs: pd.DataFrame) -> str:
    """Median and quartiles over the seeds, as a table in Markdown."""
    shares = [f"{share:.0%}" for share in FRACTIONS]
    head = [
        "sampler",
        "stopper",
        "trials",
        "stopped",
        *(f"HV at {share}" for share in shares),
        f"s to {GOAL:.0%}",
        "best score",
    ]
    lines = [head, ["---"] * len(head)]
    for (sampler, stopper), of in runs.groupby(["sampler", "stopper"], sort=False):
        counts = [f"{of[name].median():.0f}" for name in ("started", "stopped")]
        spreads = [_spread(of[name]) for name in (*shares, "time_to_goal_s", "score")]
        lines.append([str(sampler), str(stopper), *counts, *spreads])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: pd.Series) -> str:
    ordered = values.sort_values().to_numpy()  # a time that was not reached is infinite: no interpolation
    at = (0.5, 0.25, 0.75)
    middle, low, high = (f"{ordered[round(q * (len(ordered) - 1))]:.1f}".replace("inf", "-") for q in at)
    return f"{middle} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="Parquet or CSV(.gz)")
    parser.add_argument("--record", type=Path, metavar="OUT", help="make the table from the sweeps in this folder")
    parser.add_argument("--sweep", nargs="+", default=[], help="with --record: names of sweeps")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the table's training time")
    parser.add_argument("--overhead-s", type=float, default=0.0, help="seconds of a trial after its last epoch")
    parser.add_argument("--objective", choices=OBJECTIVES, default="pareto")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--stoppers", nargs="+", choices=STOPPERS, default=list(STOPPERS))
    chosen = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if chosen.record:
        table = record_table(chosen.record, chosen.sweep)
        save = table.to_parquet if chosen.table.suffix == ".parquet" else table.to_csv
        save(chosen.table, index=False)
        print(f"{len(table)} trials in {chosen.table}")
        return
    print(f"HV: % of the table's hypervolume, median [quartiles] of {chosen.seeds} seeds, {chosen.workers} workers;")
    print(f"score: points, of the best finished candidate; Optuna is told the objective {chosen.objective!r}")
    print(show(compare(read_table(chosen.table), chosen)))


if __name__ == "__main__":
    main()
