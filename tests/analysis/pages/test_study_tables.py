import pandas as pd
import pytest
from PIL import Image

from analysis.pages.study_tables import distillation_table, inference_table, precision_table, pruning_table, write_study
from analysis.reading.runs import Runs, read_curves, read_runs


def trial(**changes):
    row = {"stage": "candidate", "status": "finished", "test_accuracy": 0.8, "latency_p50_ms": 2.0}
    row |= {"size_bytes": 3_000_000, "num_params": 1_000_000, "num_nonzero_params": 700_000, "num_test": 1000}
    row |= {
        "latency_device": "AMD EPYC",
        "latency_verdict": "clean",
        "student_model": "alexnet_small",
        "teacher_model": "alexnet",
    }
    row |= {
        "train_time_s": 30.0,
        "latency_runtime": "onnxruntime_cpu",
        "student_epochs": 3,
        "throughput_64_ips": 500.0,
        "pruning_method": "l1_unstructured",
    }
    return row | changes


def sweep(*rows):
    index = pd.Index([f"run{i}" for i in range(len(rows))], name="run_id")
    return Runs(name="s", frame=pd.DataFrame(rows, index=index), params=(), metrics=(), sweeps={"s": {}})


def cells(**changes):
    row = {"model": "alexnet (teacher)", "status": "finished", "reason": "", "precision": "fp32", "batch_images": 64}
    row |= {"runtime_threads": 1}
    row |= {"test_accuracy": 0.8, "num_test": 10_000, "latency_device": "AMD EPYC"}
    fast = {"runtime": "onnxruntime_cpu", "latency_p50_ms": 32.0, "throughput_ips": 2000.0}
    slow = {"runtime": "eager_cpu", "latency_p50_ms": 64.0, "throughput_ips": 1000.0}
    return pd.DataFrame([row | fast | changes, row | slow])


def test_the_time_saved_over_the_test_set_by_hand():
    frame = inference_table(cells(), "eager_cpu", "onnxruntime_cpu").frame
    assert frame["Variant"].tolist() == ["original (eager PyTorch)", "exported (onnxruntime_cpu)"]
    assert frame["Test set s"].tolist() == [10.0, 5.0]
    assert frame["Improvement %"].tolist() == [0.0, 50.0]


def test_a_slower_export_is_an_improvement_below_zero():
    assert (
        inference_table(cells(throughput_ips=500.0), "eager_cpu", "onnxruntime_cpu").frame["Improvement %"].iloc[1]
        == -100
    )


def test_a_runtime_that_is_absent_is_told_with_its_reason():
    with pytest.raises(ValueError, match="onnxruntime_cpu has no numbers: no such package"):
        inference_table(cells(status="infeasible", reason="no such package"), "eager_cpu", "onnxruntime_cpu")


def test_students_are_told_as_a_share_of_the_teachers_accuracy():
    teacher = trial(stage="teacher", test_accuracy=0.9)
    scratch, taught = [trial(kd_loss=loss, test_accuracy=x) for loss, x in (("none", 0.45), ("kd", 0.72))]
    frame = distillation_table(sweep(teacher, taught, scratch, trial(kd_loss="kd", test_accuracy=0.90))).frame
    assert frame["Variant"].str.split(" ").str[0].tolist() == ["teacher", "student", "student"]
    assert frame["Acc %"].tolist() == pytest.approx([90, 45, 81])
    assert frame["n"].tolist() == [1, 1, 2]
    assert frame["of the teacher's %"].tolist() == pytest.approx([100, 50, 90])


def test_a_variant_without_a_finished_trial_is_named():
    with pytest.raises(ValueError, match="from scratch"):
        distillation_table(sweep(trial(stage="teacher"), trial(kd_loss="kd")))


@pytest.mark.parametrize(("device", "file"), [("AMD EPYC", "results_cpu"), ("cuda:H200", "results_gpu_only")])
def test_the_pruning_table_is_named_after_its_device(device, file, tmp_path):
    rows = [trial(pruning_ratio=ratio, latency_device=device, test_accuracy=0.8 - ratio) for ratio in (0.3, 0.0, 0.2)]
    table = pruning_table(sweep(trial(stage="teacher", latency_device=device), *rows))
    assert table.frame["Variant"].tolist()[1:] == [
        "alexnet_small + KD",
        "alexnet_small + KD + l1_unstructured 20 %",
        "alexnet_small + KD + l1_unstructured 30 %",
    ]
    assert table.frame["SizeMB"].tolist() == [4.0] * 4
    assert table.frame["FileMB"].tolist() == [3.0] * 4
    written = write_study(table, tmp_path, made_by=["python sweeps/studies.py pruning"])
    assert [path.name for path in written] == [f"{file}.csv", f"{file}.md", "metrics_grid.png", "metrics_grid.svg"]
    assert pd.read_csv(tmp_path / f"{file}.csv")["Acc %"].tolist() == pytest.approx([80, 80, 60, 50])
    text = written[1].read_text()
    assert "| alexnet_small + KD + l1_unstructured 30 % | 1 | 50 |  | 2 |" in text
    assert "python sweeps/studies.py pruning" in text
    assert 900 < Image.open(written[2]).size[0] < 3000


def test_a_timing_in_doubt_is_said_in_its_row():
    verdicts = ("clean", "noisy: p50 within 4.0 %", "clean")
    seeds = [trial(kd_loss="kd", latency_verdict=verdict) for verdict in verdicts]
    frame = distillation_table(sweep(trial(stage="teacher"), trial(kd_loss="none"), *seeds)).frame
    assert frame["Verdict"].tolist() == ["clean", "clean", "1 of 3 noisy"]
    contaminated = cells(latency_verdict="contaminated: 6 % of the time others ran in its place")
    frame = inference_table(contaminated, "eager_cpu", "onnxruntime_cpu").frame
    assert frame["Verdict"].tolist() == ["1 of 1 not recorded", "1 of 1 contaminated"]


def test_a_training_precision_without_a_finished_trial_is_named():
    with pytest.raises(ValueError, match="no trial trained in amp"):
        precision_table(sweep(trial(train_precision="fp32")), pd.DataFrame())


def test_the_best_of_a_curve_is_taken_with_its_epoch():
    points = {"train_accuracy": [0.2, 0.9, 0.8], "val_accuracy": [0.1, 0.3, 0.6]}
    points |= {"train_loss": [2.0, 1.0, 1.5], "val_loss": [2.5, 2.0, 2.2]}
    curves = [
        (run, f"student_{name}", epoch, scale * value)
        for run, scale in (("run0", 1.0), ("run1", 0.5))
        for name, values in points.items()
        for epoch, value in enumerate(values, start=1)
    ]
    runs = sweep(*(trial(train_precision=precision) for precision in ("fp32", "amp")))
    frame = precision_table(runs, pd.DataFrame(curves, columns=["run_id", "metric", "step", "value"])).frame
    assert frame["Training"].tolist() == ["FP32", "AMP (bfloat16)"]
    best = frame.iloc[0]
    assert (best["Best train acc %"], best["at epoch"], best["Best val acc %"]) == (90, 2, 60)
    assert (best["Best train loss"], best["Best val loss"], best["Test s"]) == (1.0, 2.0, 2.0)
    assert (frame["Best train acc %"].iloc[1], frame["Best val loss"].iloc[1]) == (45, 1.0)


def test_a_training_of_no_epoch_is_refused_with_the_flag():
    with pytest.raises(ValueError, match="--student-epochs 0"):
        precision_table(sweep(trial(train_precision="fp32", student_epochs=0)), pd.DataFrame())


def test_a_gpu_run_beside_a_cpu_run_is_not_mixed_with_it():
    both = pd.concat([cells(), cells().replace({"runtime": {"eager_cpu": "eager_cuda"}}).assign(throughput_ips=9e9)])
    assert inference_table(both, "eager_cpu", "onnxruntime_cpu").frame["Test set s"].tolist() == [10.0, 5.0]


def test_curves_are_read_in_place_as_mlflows_client_reads_them(store, monkeypatch):
    from analysis.reading.mlflow_sqlite import SqliteStore
    from tests.analysis.reading.test_runs import tables_have_changed

    run_ids = [str(run_id) for run_id in read_runs(store).frame.index]
    in_place = read_curves(store, run_ids)
    monkeypatch.setattr(SqliteStore, "history", tables_have_changed)
    asked = read_curves(store, run_ids)
    order = ["run_id", "metric", "step"]
    known = [frame.sort_values(order, ignore_index=True) for frame in (in_place, asked)]
    pd.testing.assert_frame_equal(*known)
    assert len(in_place) > 100
