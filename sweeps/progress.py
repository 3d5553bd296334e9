"""What a person sees while a sweep runs: one calm table on a terminal, one line a trial elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainables.records import TrialRecord

REDRAW_S = 0.5


class Progress(tune.Callback):
    """Draws the state of the sweep; holds nothing that a resumed sweep needs."""

    def __init__(
        self, console: Console, *, title: str, trials: int, done: int, concurrency: int, teacher: str | None = None
    ) -> None:
        """Begin at `done` of `trials`.

        Args:
            title: first line.
            trials: finished trials wanted in all.
            done: of them, those finished by earlier runs.
            concurrency: trials at once.
            teacher: second line, if there is a teacher yet.
        """
        self._console = console
        self._title, self._teacher = title, teacher
        self._trials, self._done, self._concurrency = trials, done, concurrency
        self._before = done
        self._started = time.monotonic()
        self._drawn = 0.0
        self._running: dict[str, str] = {}
        self._best: tuple[float, str] | None = None
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks; a console and its locks do not belong to that."""
        return {name: value for name, value in vars(self).items() if name not in ("_console", "_live")}

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(self._draw(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        else:
            self._console.print(self._title)
            if self._teacher:
                self._console.print(self._teacher)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finished(self, label: str, score: float, summary: str) -> None:
        """A trial has its result; `score` in points, higher is better."""
        if self._best is None or score > self._best[0]:
            self._best = (score, f"trial {label}  {summary}")
        if self._live is None:
            text = f"[{self._done}/{self._trials}] trial {label}  {summary}{self._left()}"
            self._console.print(text, markup=False, soft_wrap=True)

    def dropped(self, label: str, record: TrialRecord) -> None:
        """A trial ended without a candidate: stopped, infeasible or failed."""
        style = "yellow" if record.status == "failed" else "dim"
        text = f"[{self._done}/{self._trials}] trial {label}  {record.status}: {record.reason}"
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: an epoch is over."""
        if "epoch" in result and not result.get("done"):
            self._running[trial.trial_id] = (
                f"{_label(trial):>4}  {result['stage']} {result['epoch']}/{result['epochs']}"
                f"  val {100 * result['val_accuracy']:.1f} %"
            )

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has got its resources."""
        self._running[trial.trial_id] = f"{_label(trial):>4}  starting"

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has ended by itself."""
        self._running.pop(trial.trial_id, None)
        self._done += 1

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has failed for good."""
        self._running.pop(trial.trial_id, None)
        self._done += 1

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune: its loop has gone round."""
        if self._live is not None and time.monotonic() - self._drawn > REDRAW_S:
            self._drawn = time.monotonic()
            self._live.update(self._draw(), refresh=True)

    def _left(self) -> str:
        here = self._done - self._before
        if not here or self._done >= self._trials:
            return ""
        seconds = (time.monotonic() - self._started) / here * (self._trials - self._done)
        return f"  about {_clock(seconds)} left"

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for line in self._running.values():
            table.add_row(Text(line, style="dim"))
        bar = Table.grid(padding=(0, 2))
        elapsed = _clock(time.monotonic() - self._started)
        state = f"{self._done}/{self._trials} done  {len(self._running)} running  {elapsed}{self._left()}"
        bar.add_row(ProgressBar(total=self._trials, completed=self._done, width=30), Text(state))
        lines: list[RenderableType] = [Text(self._title, style="bold")]
        if self._teacher:
            lines.append(Text(self._teacher))
        lines += [bar, table]
        if self._best is not None:
            lines.append(Text(f"best so far: {self._best[1]}", style="green"))
        return Group(*lines)


def _label(trial: Trial) -> str:
    number = trial.config.get("trial_number")
    return "teacher" if number is None else str(number)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
