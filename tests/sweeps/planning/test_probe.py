from pathlib import Path

import pytest
from PIL import Image

from sweeps.planning.probe import probe
from sweeps.search.presets import quick
from trainables.stages.data import prepared


@pytest.mark.slow
def test_a_process_of_its_own_times_the_same_stages(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / "more" / f"{i}.png")
    base = quick().search.base.replace(train_limit=200, batch_size=20, unlabeled=str(tmp_path / "more"))
    config = quick().replace(base=base, data_dir=tmp_path / "data", out=tmp_path / "runs")
    dataset = prepared.prepare(base.data, config.places.data_dir)
    here, there = (probe(config, dataset, apart=apart) for apart in (False, True))
    for one in (here, there):
        assert len(one.teacher_step_s) == 6 - 1  # without the first
        assert len(one.student_step_s) == 2 * (6 - 1)  # of the teacher as the student, and of the small network
        assert len(one.labels_batch_s) == 1
        assert all(seconds > 0 for seconds in (*one.teacher_step_s, *one.student_step_s, *one.labels_batch_s))
        assert one.student_check_s > 0
    assert (here.teacher_steps, here.steps, here.label_batches) == (10, 13, 2)  # of 200 images, and of 260
    assert (here.steps, here.label_batches, here.teacher_bytes) == (
        there.steps,
        there.label_batches,
        there.teacher_bytes,
    )
    assert here.student_bytes == pytest.approx(there.student_bytes, rel=0.01)
