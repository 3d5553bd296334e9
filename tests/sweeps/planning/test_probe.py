import copy
import itertools
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from sweeps.planning.probe import _training, _trials_here, average_student, probe
from sweeps.search.presets import quick
from sweeps.search.space import parse
from trainables.stages.data import prepared
from trainables.stages.data.on_device import load_images
from trainables.stages.models.inspection import count
from trainables.stages.models.stored import build_for
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import Trainer
from trainables.stages.training.student import student_loop


@pytest.mark.slow
def test_a_process_of_its_own_times_the_same_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside: list[int] = []

    def watched(trainers: Sequence[Trainer]) -> AbstractContextManager[None]:
        beside.append(len(trainers))
        return _training(trainers)

    monkeypatch.setattr("sweeps.planning.probe._training", watched)
    monkeypatch.setattr("sweeps.planning.probe._trials_here", lambda config: 2)
    (tmp_path / "more").mkdir()
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / "more" / f"{i}.png")
    base = quick().search.base.replace(train_limit=200, batch_size=20, unlabeled=str(tmp_path / "more"))
    config = quick().replace(base=base, data_dir=tmp_path / "data", out=tmp_path / "runs")
    dataset = prepared.prepare(base.data, config.places.data_dir)
    here, there = (probe(config, dataset, apart=apart) for apart in (False, True))
    assert beside == [1, 1], "each student was timed beside another trial"
    for one in (here, there):
        assert len(one.teacher_step_s) == 6 - 1  # without the first
        assert {name: len(steps) for name, steps in one.student_step_s.items()} == {"teacher": 5, "alexnet_small": 5}
        assert len(one.labels_batch_s) == 1
        timed = (*one.teacher_step_s, *one.labels_batch_s, *itertools.chain(*one.student_step_s.values()))
        assert all(seconds > 0 for seconds in (*timed, *one.student_check_s.values(), *one.export_s.values()))
    assert (here.teacher_steps, here.steps, here.label_batches) == (10, 13, 2)  # of 200 images, and of 260
    assert (here.steps, here.label_batches, here.teacher_bytes) == (
        there.steps,
        there.label_batches,
        there.teacher_bytes,
    )
    assert here.student_bytes == pytest.approx(there.student_bytes, rel=0.01)


@pytest.mark.parametrize(("of", "left"), [("channels", (0.25 + 0.0625) / 2), ("macs", (0.5 + 0.25) / 2)])
def test_the_teacher_as_a_student_has_the_mean_macs_of_its_first_cuts(tmp_path: Path, of: str, left: float) -> None:
    base = quick().search.base.replace(train_limit=100, student_model="teacher", pruning_of=of)
    config = quick().replace(base=base, space={"pruning_ratio": parse("pruning_ratio", "0,0.5,0.75")})
    dataset = prepared.prepare(base.data, tmp_path)
    zeroed = config.replace(base=base.replace(pruning_method="l1_unstructured", pruning_of="channels"))
    dense, cut = (
        average_student(sweep.search.base.resolve(dataset, device="cpu"), sweep.search, dataset)
        for sweep in (zeroed, config)
    )
    assert count(cut, 32)[2] / count(dense, 32)[2] == pytest.approx(left, abs=0.06)


def test_steps_are_timed_beside_as_many_trials_as_will_run_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for words, trials in (
        ({"cpus": 1}, 1),
        ({"cpus": 8, "cpus_per_trial": 2}, 4),
        ({"cpus": 64, "cpus_per_trial": 2, "address": "10.0.0.1:6379"}, 4),  # of 32, those of one machine
        ({"cpus": 8, "gpus": 2}, 1),
    ):
        assert _trials_here(quick().replace(**words)) == trials, words


def test_others_train_until_the_block_ends(tmp_path: Path) -> None:
    base = quick().search.base.replace(train_limit=64, batch_size=16)
    dataset = prepared.prepare(base.data, tmp_path)
    candidate = base.resolve(dataset, device="cpu")
    model = build_for("alexnet_small", dataset)
    before = copy.deepcopy(model.state_dict())

    def moved() -> bool:
        return any(not value.equal(before[name]) for name, value in model.state_dict().items())

    with _training([Trainer(model, student_loop(candidate), load_images(dataset, "cpu"), Labels(0.0))]):
        until = time.monotonic() + 60
        while not moved() and time.monotonic() < until:
            time.sleep(0.01)
    assert moved()
    before = copy.deepcopy(model.state_dict())
    time.sleep(0.2)
    assert not moved()


def test_what_fails_in_another_trial_fails_the_probe() -> None:
    class Broken:
        def steps(self, epoch: int) -> None:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"), _training([Broken()]):  # type: ignore[list-item]  # no Trainer fails on demand
        pass
