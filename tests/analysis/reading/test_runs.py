import contextlib
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis.reading.mlflow_sqlite import SqliteStore
from analysis.reading.runs import fetch_artifact, read_runs
from tests.analysis.conftest import SWEEP, log_sweep


def test_newest_sweep_is_the_default_with_one_typed_row_a_trial(store):
    runs = read_runs(store)
    frame = runs.frame
    assert runs.name == "night"
    assert runs.sweep["reference_point"]["error_points"] == 90.0
    assert len(frame) == 13
    assert frame.index.name == "run_id"
    assert list(frame["trial_number"].fillna(-1)) == [-1, *range(12)]
    assert frame["stage"].iloc[0] == frame["control"].iloc[0] == "teacher"
    assert set(frame["sweep"]) == {"night"}
    assert frame["temperature"].dtype == frame["val_accuracy"].dtype == np.float64
    assert frame["num_val"].dtype == np.int64
    assert frame["flip"].dropna().tolist() == [True] * 12
    assert frame["image_size"].isna().all()
    assert frame["pruning_method"].dropna().isin(["structured", "l1_unstructured"]).all()
    assert "val_accuracy" in runs.metrics
    assert "temperature" in runs.params


def test_infinity_comes_back_as_infinity_and_absence_as_nan(store):
    frame = read_runs(store).frame.set_index("trial_number")
    assert frame.loc[8, "score"] == np.inf
    assert np.isnan(frame.loc[8, "size_bytes"])


def test_a_sweep_without_trials_is_an_empty_frame(store):
    runs = read_runs(store, "early")
    assert runs.frame.empty
    assert "status" in runs.frame.columns


def test_more_than_a_thousand_runs_are_read(store, monkeypatch):
    search = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *args, **kwargs: search(*args, max_results=5, **kwargs))
    monkeypatch.setattr(SqliteStore, "parents", tables_have_changed)
    monkeypatch.setattr(SqliteStore, "children", tables_have_changed)
    assert len(read_runs(store).frame) == 13


def tables_have_changed(*_):
    raise sqlite3.OperationalError("no such table: latest_metrics")


def test_the_file_read_in_place_and_mlflows_client_tell_the_same(store, monkeypatch):
    in_place = read_runs(store)
    monkeypatch.setattr(SqliteStore, "parents", tables_have_changed)
    monkeypatch.setattr(SqliteStore, "children", tables_have_changed)
    by_client = read_runs(store)
    assert (by_client.name, by_client.sweeps) == (in_place.name, in_place.sweeps)
    assert (by_client.params, by_client.metrics) == (in_place.params, in_place.metrics)
    pd.testing.assert_frame_equal(by_client.frame, in_place.frame)


@pytest.fixture
def copied(out, tmp_path):
    """A store of one's own, without the seconds that a new one takes."""
    shutil.copytree(out, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_moved_folder_still_has_its_artifacts(out, copied):
    with contextlib.closing(sqlite3.connect(copied / "mlflow.db")) as connection:
        connection.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, '/gone')", (str(out),))
        connection.commit()
    assert read_runs(f"sqlite:///{copied / 'mlflow.db'}").sweep["name"] == "night"


def test_a_deleted_run_is_not_read(copied):
    uri = f"sqlite:///{copied / 'mlflow.db'}"
    frame = read_runs(uri).frame
    MlflowClient(tracking_uri=uri).delete_run(frame.index[frame["trial_number"] == 1][0])
    assert set(read_runs(uri).frame["trial_number"].dropna()) == set(range(12)) - {1}


def test_several_sweeps_are_taken_together_and_their_trials_told_apart(store):
    both = read_runs(store, "night, early")
    assert both.name == "night,early"
    assert len(both.frame) == 13
    assert both.frame["label"].dropna().tolist() == [f"night {number}" for number in range(12)]
    assert both.sweep["name"] == "night"


def test_sweeps_of_different_reference_points_are_not_taken_together(copied, monkeypatch):
    client = MlflowClient(tracking_uri=f"sqlite:///{copied / 'mlflow.db'}")
    monkeypatch.setitem(SWEEP, "reference_point", {**SWEEP["reference_point"], "error_points": 99.0})
    log_sweep(client, client.get_experiment_by_name("cifar10").experiment_id, "other", [])
    with pytest.raises(ValueError, match="Sweeps other and night differ in reference_point"):
        read_runs(f"sqlite:///{copied / 'mlflow.db'}", "night,other")


def test_unknown_sweep_lists_those_there_are(store):
    with pytest.raises(ValueError, match=r"name='nigth'.*newest first: night, early\."):
        read_runs(store, "nigth")


def test_absent_store_is_not_created(tmp_path):
    with pytest.raises(ValueError, match=r"mlflow\.db': the file does not exist"):
        read_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_stays_as_it_is(tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(ValueError, match=r"text\.db': file is not a database"):
        read_runs(f"sqlite:///{tmp_path / 'text.db'}")
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(ValueError, match=r"empty\.db': the file has no MLflow tables"):
        read_runs(f"sqlite:///{tmp_path / 'empty.db'}")
    assert (tmp_path / "empty.db").stat().st_size == 0


@pytest.mark.parametrize("uri", ["nonsense://x", "http://127.0.0.1:9", "sqlite://", ""])
def test_unreachable_store_is_one_line(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"tracking_uri='{uri}'") as caught:
        read_runs(uri)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_fetch_artifact_names_what_is_missing(store, tmp_path):
    run_id = read_runs(store).frame.index[0]
    with pytest.raises(ValueError, match=r"artifact 'model\.onnx'"):
        fetch_artifact(store, run_id, "model.onnx", tmp_path)
