"""Files of finished candidates for download: found by their run in the records, never by a path from a request."""

import tempfile
from pathlib import Path

from analysis.reading.rows import finished_runs
from analysis.reading.runs import Runs, fetch_artifact
from trainables.layout import ONNX_FILE, RECIPE, TORCHSCRIPT_FILE

OFFERED = (ONNX_FILE, TORCHSCRIPT_FILE, RECIPE)


class Downloads:
    """The files of one store."""

    def __init__(self, tracking_uri: str, out: Path) -> None:
        """Files lie below `out`; those of a tracking server are fetched into a folder that goes with this object."""
        self._uri, self._out = tracking_uri, out
        self._scratch = tempfile.TemporaryDirectory(prefix="serve-")

    def find(self, runs: Runs, run_id: str, name: str) -> Path | None:
        """The path of a file of a finished run; None if there is none, or if it is a link or lies elsewhere.

        Args:
            runs: as read from the records; only their finished runs have files here.
            run_id: as a request names it.
            name: as a request names it; one of `OFFERED`.
        """
        if name not in OFFERED or run_id not in _finished(runs) or not run_id.isalnum():
            return None
        folder = Path(self._scratch.name) / run_id
        folder.mkdir(exist_ok=True)
        try:
            model = fetch_artifact(self._uri, run_id, ONNX_FILE, folder)
            # A file beside the model is looked for there: asking MLflow's client for one that is not takes seconds.
            beside = model.with_name(name)
            path = (
                beside
                if beside.exists() or not self._fetched(model)
                else fetch_artifact(self._uri, run_id, name, folder)
            )
        except ValueError:
            return None
        return path if self._may_be_read(path) else None

    def offered(self, runs: Runs, run_id: str) -> list[tuple[str, int]]:
        """(name, bytes) of every file of a run; of a tracking server's run the model alone, as far as it is fetched."""
        found = ((name, self.find(runs, run_id, name)) for name in OFFERED)
        return [(name, path.stat().st_size) for name, path in found if path]

    def _fetched(self, path: Path) -> bool:
        return path.resolve().is_relative_to(Path(self._scratch.name).resolve())

    def _may_be_read(self, path: Path) -> bool:
        # The store names the place: who writes to it must not be able to name any file of this machine.
        below = path.resolve().is_relative_to(self._out.resolve()) or self._fetched(path)
        return below and path.is_file() and not path.is_symlink()


def _finished(runs: Runs) -> set[str]:
    frame = runs.frame
    return {str(run_id) for stage in ("candidate", "teacher") for run_id in finished_runs(frame, stage).index}
