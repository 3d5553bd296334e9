"""A Tune searcher that hands out a fixed list of runs."""

from collections.abc import Iterable
from typing import Any

from ray.tune.search import Searcher


class FixedRuns(Searcher):
    """Hand out a fixed list of Tune configs, in order."""

    def __init__(self, configs: Iterable[dict[str, Any]]) -> None:
        super().__init__()
        self._left = list(configs)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next config, or FINISHED."""
        return self._left.pop(0) if self._left else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the list does not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records on disk are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
