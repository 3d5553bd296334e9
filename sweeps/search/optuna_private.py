"""All private parts of Optuna that a sweep uses; pyproject.toml bounds Optuna's version because of them.

tests/contracts/test_private_parts.py fails when one of them changes.
"""

import copy
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.trial import FrozenTrial, TrialState


def cached_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials, each at the index of its number, as they were when `ask` began.

    `Study.get_trials` has no `use_cache`: it reads the storage for every proposal.
    """
    return list(study._get_trials(deepcopy=False, use_cache=True))


def trial_of(study: optuna.Study, number: int) -> optuna.Trial:
    """A running trial by its number, to suggest parameters and set attributes; `Study` returns frozen copies only."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    return optuna.Trial(study, trial_id)


def asked_for(trial: FrozenTrial) -> Mapping[str, Any]:
    """The parameters that a trial was queued with; if it was not queued, those that it has."""
    found: Mapping[str, Any] = trial.system_attrs.get("fixed_params") or trial.params
    return found


class PartOfStudy:
    """A study reduced to some of its trials, by replacing the method with which Optuna's samplers read them."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


class Replay:
    """Reads a journal line after line, as Optuna does when it opens one."""

    def __init__(self) -> None:
        self._result = JournalStorageReplayResult("")

    def takes(self, line: bytes) -> bool:
        """Read one more line; False if it is none of Optuna's, or does not fit those before it."""
        try:
            self._result.apply_logs([json.loads(line)])
        except Exception:  # whatever a damaged line makes Optuna raise
            return False
        return True


class Forward(JournalFileBackend):
    """A journal file that remembers only where it has read to; Optuna's keeps every line's offset, 2 kB per trial."""

    _log_number_offset: dict[int, int]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """As in Optuna, but forget all offsets except the last."""
        yield from super().read_logs(log_number_from)
        last = max(self._log_number_offset)
        self._log_number_offset = {0: 0, last: self._log_number_offset[last]}
