"""Tune searcher over Optuna's ask and tell, with a study on disk that survives the death of any driver.

Ray's own OptunaSearch does not serve: it reports stopped trials as complete, leaves trials running for ever when a
metric is missing, and loses the running trials when the driver dies.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sweeps.search.config import Search
from sweeps.search.objectives import DIRECTIONS, study_directions, study_values
from sweeps.search.optuna_private import asked_for, trial_of
from sweeps.search.sampling.first_trials import far_cuts, in_turns, student_of
from sweeps.search.sampling.ruled_out import RuledOut, excess_of
from sweeps.search.sampling.samplers import Promising, keep_student, make_sampler
from sweeps.search.space import identify, size, suggest
from sweeps.search.study_file import open_journal
from trainables.config.candidate import CandidateConfig
from trainables.records.stages import FLOAT_LAYERS

# Attributes of dropped proposals: an earlier trial is the same, or a known shape shows that a limit is exceeded.
DUPLICATE = "duplicate"
RULED_OUT = "ruled_out"
# Proposals dropped in a row before the space counts as exhausted, if its size is infinite.
MAX_DROPPED = 1000
# Proposals dropped in a row before promising students are no longer kept: they have been pruned in every possible way.
MAX_REUSED = 5
# Proposals dropped in a row before a random sampler takes over, or a list of the rest of a finite space: samplers that
# learn only from finished trials (`gp`) would propose the same for ever.
MAX_STUCK = 10
# Precisions whose files are written from one trained network; `int8_qat` trains on.
SAME_NETWORK = ("fp32", "fp16", "int8_ptq")
# Attribute of a queued trial whose network has been trained.
OTHER_FILE = "another_file"
# Attribute of a study: the number of the trial whose student gets the largest cut.
CUT = "far_cuts"


def open_study(path: Path, name: str, search: Search) -> optuna.Study:
    """Open the sweep's study in its journal file, or make it; `optuna-dashboard PATH` shows it."""
    return optuna.create_study(
        storage=open_journal(path),
        study_name=name,
        directions=study_directions(search.objective),
        load_if_exists=True,
    )


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that need no more work: measured, stopped or failed, without dropped proposals."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and not dropped(trial)]


def dropped(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a proposal was dropped before it became a trial."""
    return DUPLICATE in trial.user_attrs or RULED_OUT in trial.user_attrs


class StudySearcher(Searcher):
    """Hand the study's proposals to Tune, and report their results to the study.

    Optuna gets COMPLETE for a finished candidate with finite values; PRUNED for one that was stopped or cannot work, so
    that samplers avoid its region; FAIL, which samplers ignore, for broken machines and for dropped proposals. An
    exceeded limit becomes a constraint, never an invented value. A proposal whose shape is wider than one that exceeds
    a limit is dropped with such a constraint, and costs no trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: Search,
        *,
        tune_config: Callable[[int, Mapping[str, Any]], dict[str, Any]],
        score: Callable[[Mapping[str, float]], float],
    ) -> None:
        """Take the study over: no other driver may use it (the caller holds the sweep's lock).

        Args:
            search: what is proposed and how; the number of trials so far is added to its seed, so that a resumed sweep
                does not propose the first ones again.
            tune_config: (trial number, proposed parameters) -> what Tune carries to the trial.
            score: a finished trial's metrics -> points, higher is better.
        """
        super().__init__()
        self._study, self._search = study, search
        self._space, self._base, self._size = dict(search.space), search.base, size(search.space, search.base)
        self._tune_config, self._score = tune_config, score
        seed = search.search_seed + len(study.get_trials(deepcopy=False))
        self._sampler = make_sampler(search.sampler, seed=seed)
        self._rng = np.random.default_rng(seed)
        self._numbers: dict[str, int] = {}
        self.exhausted = False
        self.ruled_out = 0
        """How many proposals this driver has dropped because of the limits."""
        self.full: str | None = None
        """Path on a full disk, if a trial found one; after that nothing is proposed."""
        self._first, self._later = self._first_trials()
        self.files_only = False
        """Whether only files of trained networks are proposed: it is too late for another network."""
        # No other driver is alive: trials that still run in the study belong to a dead one, and are handed out again.
        orphans = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in filter(dropped, orphans):  # the driver died after it had marked the proposal, before `tell`
            study.tell(trial.number, state=TrialState.FAIL)
        self._orphans = [trial.number for trial in orphans if not dropped(trial)]
        self._over = {self._identify(t.params) for t in study.get_trials(deepcopy=False) if RULED_OUT in t.user_attrs}
        self._known = {
            self._identify(trial.params)
            for trial in study.get_trials(deepcopy=False)
            if trial.state not in (TrialState.WAITING, TrialState.FAIL) and not dropped(trial)
        }
        self._shapes = RuledOut(search.base)
        self._promising = Promising()
        for trial in finished(study):
            if FLOAT_LAYERS not in trial.user_attrs:
                self._shapes.add(trial.params, trial.constraints)
            if trial.state == TrialState.COMPLETE:
                self._promising.add(trial, trial.user_attrs["score"])

    def _first_trials(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The first trials that no driver has proposed yet: those that come next, and those that wait for a student."""
        study = self._study
        asked = [asked_for(trial) for trial in study.get_trials(deepcopy=False)]
        first, later = in_turns(self._space, self._base)
        later = [] if self._search.sampler == "grid" else later  # a grid holds them anyway
        if finished(study):
            first, later = first + later, []
        if CUT in study.user_attrs:  # its driver may have died with some of them in mind
            student = student_of(self._trial(study.user_attrs[CUT]).params)
            first = first + far_cuts(self._space, self._base, student)
        return [point for point in first if point not in asked], [point for point in later if point not in asked]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's Tune config, or FINISHED when the space holds nothing new."""
        if self.full is not None:
            return str(Searcher.FINISHED)
        trial = self._trial(self._orphans.pop(0)) if self._orphans else self._propose()
        if trial is None:
            self.exhausted = True
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = trial.number
        # an orphan keeps its parameters; one whose driver died while suggesting them gets the rest now
        params = suggest(trial, self._space, self._base)
        self._known.add(self._identify(params))
        return self._tune_config(trial.number, params)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's end to the study, and queue trials that have become worth running."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        self._conclude(number, result, error=error)
        self._queue_other_files(self._study.get_trials(deepcopy=False)[number])
        self._first += self._later
        self._later = []

    def _conclude(self, number: int, result: dict[str, Any] | None, *, error: bool) -> None:
        if error:
            trial = self._trial(number)
            trial.set_user_attr("reason", "infrastructure error after retries")
            # the machine failed, not the configuration: it may be proposed again
            self._known.discard(self._identify(trial.params))
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        elif result and result.get("full"):
            self.full, self.exhausted = str(result["full"]), True  # left running: the next driver hands it out again
        else:
            self._tell(number, result or {})

    def _queue_other_files(self, trial: optuna.trial.FrozenTrial) -> None:
        """Queue the same network in the space's other precisions: what is trained is in the store, a file is cheap."""
        if trial.state != TrialState.COMPLETE or self._search.sampler == "grid":
            return
        for precision in getattr(self._space.get("precision"), "choices", ()):
            other = trial.params | {"precision": precision}
            if precision in SAME_NETWORK and self._identify(other) not in self._known:
                self._study.enqueue_trial(other, user_attrs={OTHER_FILE: True}, skip_if_exists=True)

    @property
    def running(self) -> bool:
        """Whether a trial has not ended."""
        return bool(self._numbers)

    def next_is_file(self) -> bool:
        """Whether the next trial only writes another file of a trained network."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return bool(waiting and not self._orphans and OTHER_FILE in waiting[0].user_attrs)

    def _cut_far(self) -> None:
        """After the first trials, add others that prune the best student so far hard: cheap, and not tried yet."""
        if not self._search.reuse_probability or self._search.sampler == "grid" or CUT in self._study.user_attrs:
            return
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({tuple(student_of(trial.params).items()) for trial in done}) < 2:
            return
        best = max(done, key=lambda trial: (max(trial.constraints.values(), default=0) <= 0, trial.user_attrs["score"]))
        self._first = far_cuts(self._space, self._base, student_of(best.params))
        self._study.set_user_attr(CUT, best.number)

    def orphans(self) -> list[int]:
        """Numbers of the trials that a dead driver left running; they are handed out first."""
        return list(self._orphans)

    def settle(self, number: int, result: Mapping[str, Any]) -> None:
        """Report an orphan that had ended when its driver died to the study; it is not handed out again."""
        self._orphans.remove(number)
        self._tell(number, result)

    def _tell(self, number: int, result: Mapping[str, Any]) -> None:
        trial = self._trial(number)
        excess = excess_of(result)
        for name, by in excess.items():
            trial.set_constraint(name, by)
        # a file with float layers is larger than its shape, and says nothing about wider ones
        self._shapes.add(trial.params, {} if FLOAT_LAYERS in result else excess)
        values = self._values(result) if result.get("final") else []
        if values and all(math.isfinite(value) for value in values):
            for name in filter(result.__contains__, (*DIRECTIONS, "macs", FLOAT_LAYERS)):
                trial.set_user_attr(name, result[name])
            trial.set_user_attr("score", score := self._score(result))
            self._promising.add(self._study.tell(number, values, skip_if_finished=True), score)
            return
        reason = result.get("invalid") or ("over its limits" if excess else "stopped before its end")
        trial.set_user_attr("reason", str(reason))
        self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def _values(self, result: Mapping[str, Any]) -> list[float]:
        return study_values(self._search.objective, result, self._score(result))

    def _propose(self) -> optuna.Trial | None:
        """Ask for a new trial that may meet the limits, dropping other proposals; None if there is none left."""
        for count in range(MAX_DROPPED):
            if len(self._known | self._over) >= self._size:
                return None
            if self.files_only and not self.next_is_file():
                return None
            self._queue_first()
            self._study.sampler = self._next_sampler(count)
            trial = self._study.ask()
            params = suggest(trial, self._space, self._base)
            if self._identify(params) in self._known:
                trial.set_user_attr(DUPLICATE, True)
            elif excess := self._shapes.excess(params):
                self._over.add(self._identify(params))
                self.ruled_out += 1
                trial.set_user_attr(RULED_OUT, True)
                for name, by in excess.items():
                    trial.set_constraint(name, by)
            else:
                return trial
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def _queue_first(self) -> None:
        """Queue the next of the first trials, unless others wait: files of a trained network come before new ones."""
        if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return
        if not self._first:
            self._cut_far()
        if self._first:
            self._study.enqueue_trial(self._first.pop(0), skip_if_exists=True)

    def _next_sampler(self, in_a_row: int) -> optuna.samplers.BaseSampler:
        """The sampler of the sweep or, at random, one that keeps the stored student of a promising trial.

        Args:
            in_a_row: how many proposals were dropped since the last trial.
        """
        if in_a_row >= MAX_STUCK and self._search.sampler != "grid":
            return make_sampler("grid", seed=self._search.search_seed) if math.isfinite(self._size) else self._chance()
        if self._search.sampler == "gp":
            # Optuna 5.0's GPSampler caches kernels of constraints, which do not fit after a change in the number of
            # parameters.
            self._sampler = make_sampler("gp", seed=int(self._rng.integers(2**31)))
        if in_a_row >= MAX_REUSED or self._rng.random() >= self._search.reuse_probability:
            return self._sampler
        base = self._chance() if in_a_row else self._sampler  # the sampler's choice for it is known
        student = self._promising.draw(self._rng)
        return keep_student(base, student) if student else self._sampler

    def _chance(self) -> optuna.samplers.BaseSampler:
        return make_sampler("random", seed=int(self._rng.integers(2**31)))

    def _identify(self, params: Mapping[str, Any]) -> CandidateConfig:
        return identify(params, self._base)

    def _trial(self, number: int) -> optuna.Trial:
        return trial_of(self._study, number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study holds the state, and the same command resumes it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
