"""The private parts of Optuna that a sweep needs, all of them; pyproject.toml bounds Optuna's version because of them.

tests/contracts/test_private_parts.py fails when one of them moves.
"""

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
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
    """The parameters that a trial was queued with, or else those that it has."""
    found: Mapping[str, Any] = trial.system_attrs.get("fixed_params") or trial.params
    return found


class PartOfStudy:
    """A study with some of its trials: it answers the method by which Optuna's samplers read them."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


class Forward(JournalFileBackend):
    """Remembers where it has read to; Optuna's own keeps the place of every line, 2 kB a trial, for ever."""

    _log_number_offset: dict[int, int]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """As Optuna's."""
        yield from super().read_logs(log_number_from)
        last = max(self._log_number_offset)
        self._log_number_offset = {0: 0, last: self._log_number_offset[last]}
