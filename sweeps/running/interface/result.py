"""What `compress` returns: the front of its sweep, and the files on it."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import commands
from analysis.findings import selecting
from analysis.findings.front import choose, competing, front_members
from analysis.pages.front_files import write_page
from analysis.reading.rows import row_of
from analysis.reading.runs import Runs, read_runs
from trainables.layout import FRONT, ONNX_FILE, database_uri, sweep_folder, trial_folder
from trainables.stages.export.session import open_session

FRAME_PX = 640  # height of the figure in a notebook


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished sweep.

    `which` below is `balanced`, `most_accurate`, `fastest`, `smallest`, or the number of a trial, such as the
    `trial_number` of `best`.
    """

    name: str
    """The sweep's, also in MLflow and for `python -m analysis --name`."""
    out: Path
    """Folder that holds it."""
    tracking_uri: str | None = None
    """Its MLflow server or database; None is the database in `out`."""
    complete: bool = True
    """Whether every trial has ended without an error, and MLflow has it; if not, the same call goes on."""

    @property
    def runs(self) -> Runs:
        """Everything that was recorded."""
        return read_runs(self.tracking_uri or database_uri(self.out), self.name)

    @property
    def front(self) -> pd.DataFrame:
        """A row for each file on the Pareto front, the most accurate first: `val_accuracy` and `test_accuracy` (0 to
        1), `latency_p50_ms` of one image, `size_bytes` of the ONNX file, `trial_number`, and the settings."""
        front = front_members(self.runs)
        # of all runs, the teacher has none
        return front.astype({name: int for name in ("trial_number",) if name in front.columns})

    def figure(self) -> "Figure":
        """The interactive front, which a notebook draws: accuracy (%) against latency of one image (ms), size (MB) by
        colour; parallel coordinates of the settings; hypervolume over trials. It is written anew.

        Raises:
            ValueError: if no trial has finished.
        """
        folder = sweep_folder(self.out, self.name) / FRONT
        if not (written := write_page(self.runs, folder)):
            raise ValueError(f"Sweep {self.name} has no finished trial, so there is no front to draw.")
        return Figure(page=written[0])

    def best(
        self,
        *,
        max_latency_ms: float | None = None,
        max_size_mb: float | None = None,
        min_accuracy: float | None = None,
    ) -> "pd.Series[Any]":
        """The row of the most accurate file within limits.

        Args:
            max_latency_ms: median of one image, milliseconds.
            max_size_mb: ONNX file, 10^6 bytes.
            min_accuracy: on the validation split, 0 to 1.

        Raises:
            ValueError: if nothing fits; it says what comes nearest.
        """
        goal = selecting.Goal(max_latency_ms=max_latency_ms, max_size_mb=max_size_mb, min_accuracy=min_accuracy)
        runs = self.runs
        candidates = competing(runs)
        choice = selecting.select(candidates, goal, runs.sweep["directions"])
        if choice.best is None:
            near = row_of(candidates, choice.nearest)
            raise ValueError(
                f"Nothing fits {goal.given()}; nearest is trial {int(near['trial_number'])}: val_accuracy"
                f" {near['val_accuracy']:.4f}, {near['latency_p50_ms']:.3g} ms, {near['size_bytes'] / 1e6:.3g} MB."
            )
        return row_of(candidates, choice.best)

    def path(self, which: str | int = "balanced") -> Path:
        """The ONNX file. It takes `image`, float32 (N, 3, H, W), RGB in [0, 1], and returns `logits`.

        Raises:
            ValueError: if there is no such file.
        """
        if isinstance(which, str) and not which.isdecimal():
            runs = self.runs
            front = front_members(runs)
            chosen = choose(front, runs.sweep["teacher"])
            if which not in chosen:
                raise ValueError(f"which={which!r} must be a trial's number or one of {', '.join(chosen)}.")
            which = int(row_of(front, chosen[which])["trial_number"])
        file = trial_folder(sweep_folder(self.out, self.name), int(which)) / ONNX_FILE
        if not file.is_file():
            raise ValueError(f"which={which}: no finished trial has this number.")
        return file

    def load(self, which: str | int = "balanced", *, threads: int = 1) -> Any:
        """The file in an ONNX Runtime session on the CPU: `session.run(None, {"image": pixels})[0]` are the logits.

        Raises:
            ValueError: as `path` does.
        """
        return open_session(self.path(which), threads)

    def export(self, to: str | Path, which: str | int = "balanced") -> Path:
        """Write a folder to ship: ONNX, TorchScript, preprocessing, labels, a predict.py and a model card; returns it.

        Raises:
            ValueError: if there is no such file.
        """
        self.path(which)
        commands.export(out=self.out, tracking_uri=self.tracking_uri, which=f"{self.name}@{which}", to=Path(to))
        return Path(to)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The front as an interactive page that needs no network; in a notebook it draws itself."""

    page: Path
    """The HTML file, for a browser."""

    @property
    def picture(self) -> Path:
        """The same front as PNG, for viewers that run no scripts, as GitHub's."""
        return self.page.with_suffix(".png")

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """What a notebook shows: the page in a frame of its own, whose scripts and styles are not the notebook's."""
        page = escape(self.page.read_text(encoding="utf-8"))
        frame = f'<iframe srcdoc="{page}" style="width: 100%; height: {FRAME_PX}px; border: 0"></iframe>'
        shown: dict[str, Any] = {"text/html": frame, "text/plain": repr(self)}
        if self.picture.is_file():
            shown["image/png"] = base64.b64encode(self.picture.read_bytes()).decode()
        return shown
