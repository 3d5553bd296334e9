import dataclasses
import importlib
import json
import math
import pkgutil
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trainables.records
from trainables.records.encoding import UndecodableError, decode, read_json, read_record, to_json
from trainables.records.latency import ConditionsRecord, LatencyRecord
from trainables.records.stages import EpochRecord, ModelRecord, read_model
from trainables.records.trial import TrialRecord, read_trial
from trainables.stages.measuring.process import Job, Measured
from trainables.stages.measuring.runtime_cell import CellRecord
from trainables.stages.runtimes.base import Artifact
from trainables.stages.runtimes.cell import Cell
from trainables.store.manifest import Manifest
from trainables.store.results import Store, stage_key

ROOMS = [f"trainables.records.{module.name}" for module in pkgutil.iter_modules(trainables.records.__path__)]
RECORDS = [
    kind
    for room in ROOMS
    for kind in vars(importlib.import_module(room)).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == room and room != "trainables.records.encoding"
]
CLASSES = [*RECORDS, Job, Measured, CellRecord, Artifact, Cell, Manifest]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
PLAIN: Mapping[Any, st.SearchStrategy[Any]] = {
    Any: JSON,
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False) | st.integers(-1000, 1000),
    str: st.text(),
    type(None): st.none(),
    Path: st.lists(st.text("ab/. ", min_size=1), min_size=1).map(lambda parts: Path(*parts)),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a field of this type can hold."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if dataclasses.is_dataclass(kind):
        return records(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(each) for each in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    assert origin is Mapping
    return st.dictionaries(st.text(), values(arguments[1]), max_size=3)


def records(kind: Any) -> st.SearchStrategy[Any]:
    """Every record of a class, its fields with defaults at times left out."""
    hints = typing.get_type_hints(kind)
    needed, free = {}, {}
    for field in dataclasses.fields(kind):
        (needed if field.default is dataclasses.MISSING else free)[field.name] = values(hints[field.name])
    return st.fixed_dictionaries(needed, optional=free).map(lambda row: kind(**row))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_was_encoded_is_decoded_to_the_same(kind: type, data: st.DataObject) -> None:
    record = data.draw(records(kind))
    text = to_json(record)
    again = decode(kind, json.loads(text), where="test")
    assert again == record
    assert to_json(again) == text  # equal numbers, but also 2 and not 2.0, and tuples where there were tuples
    assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(record).values()]


def test_every_class_of_the_room_is_among_them() -> None:
    names = {kind.__name__ for kind in RECORDS}
    assert {"ModelRecord", "ExportRecord", "Measurement", "ShapeRecord", "TrialRecord", "DatasetRecord"} <= names


EPOCH = EpochRecord(
    stage="student",
    epoch=1,
    epochs=1,
    train_loss=1.5,
    train_accuracy=0.5,
    val_loss=1.25,
    val_accuracy=0.5,
    learning_rate=0.001,
    seconds=2,
)
TRIAL = TrialRecord(
    key="quick/00001",
    trial_number=1,
    stage="candidate",
    status="finished",
    reason="",
    params={"alpha": 0.5, "sizes": [1, 2]},
    metrics={"val_accuracy": 0.5, "macs": 7},
    tags={},
    curve=(EPOCH, EPOCH),
    files=("model.onnx",),
    started=1.0,
    ended=2.0,
)


def changed(path: list[Any], value: Any) -> Any:
    """The trial's row with one value replaced."""
    row = json.loads(to_json(TRIAL))
    part = row
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return row


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["curve", 1, "val_loss"], "1.25", r"curve\[1\]\.val_loss must be a number, but is '1\.25'"),
        (["curve", 1, "val_loss"], True, r"curve\[1\]\.val_loss must be a number, but is True"),
        (["curve", 0, "epoch"], 1.0, r"curve\[0\]\.epoch must be a whole number, but is 1\.0"),
        (["curve", 0, "vall_loss"], 1.0, r"curve\[0\]\.vall_loss is no field of EpochRecord"),
        (["curve", 0], [1], r"curve\[0\] must be an object \(EpochRecord\), but is \[1\]"),
        (["curve"], None, r"curve must be a list, each an object \(EpochRecord\), but is None"),
        (["files"], "model.onnx", r"files must be a list, each a text, but is 'model\.onnx'"),
        (["files"], ["model.onnx", None], r"files\[1\] must be a text, but is None"),
        (["metrics", "macs"], None, r"metrics\['macs'\] must be a number, but is None"),
        (["metrics"], [], r"metrics must be an object, each value a number, but is \[\]"),
        (["trial_number"], "1", r"trial_number must be a whole number or null, but is '1'"),
    ],
)
def test_what_does_not_fit_is_named_with_file_place_and_rule(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^some/record.json: {message}$"):
        decode(TrialRecord, changed(path, value), where=Path("some/record.json"))


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (tuple[float, float, float], [1, 2], r"^x: must be a list of 3, but is \[1, 2\]$"),
        (tuple[float, float, float], [1, 2, "3"], r"^x: \[2\] must be a number, but is '3'$"),
        (dict[str, float], {"a": "b"}, r"^x: \['a'\] must be a number, but is 'b'$"),
        (int | str | None, 1.5, r"^x: must be a whole number or a text or null, but is 1\.5$"),
        (Measured, {}, r"^x: candidate is missing$"),
        (Artifact, {"onnx": 1}, r"^x: onnx must be a path, but is 1$"),
        (TrialRecord, [], r"^x: must be an object \(TrialRecord\), but is \[\]$"),
    ],
)
def test_other_types_say_what_they_expect(kind: Any, row: Any, message: str) -> None:
    with pytest.raises(UndecodableError, match=message):
        decode(kind, row, where="x")


def test_fields_below_a_union_with_none_are_named_too() -> None:
    seen = ConditionsRecord(cores=(1,), seconds=1.0, nice=0, load_1m=0.5)
    took = {f.name: 1.0 for f in dataclasses.fields(LatencyRecord)} | {
        "latency_n": 3,
        "latency_disturbed": False,
        "latency_device": "cpu:1",
        "latency_provider": "CPU",
        "latency_doubt": "",
        "latency_attempts": 1,
        "conditions": seen,
    }
    row = json.loads(to_json(LatencyRecord(**took)))
    assert decode(LatencyRecord, row, where="x").conditions == seen
    row["conditions"]["cores"] = ["one"]
    with pytest.raises(ValueError, match=r"^x: conditions\.cores\[0\] must be a whole number, but is 'one'$"):
        decode(LatencyRecord, row, where="x")


def test_an_older_record_lacks_what_has_a_default_and_nothing_else() -> None:
    row = json.loads(to_json(TRIAL))
    del row["keys"]
    assert decode(TrialRecord, row, where="x") == TRIAL
    del row["files"]
    with pytest.raises(ValueError, match=r"^x: files is missing$"):
        decode(TrialRecord, row, where="x")


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "null", '{"key": "a"}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_bytes(text.encode("latin-1"))
    for read in (read_trial, lambda folder: read_model(folder, "resnet18")):
        with pytest.raises(ValueError, match=str(tmp_path / "record.json")):
            read(tmp_path)


def test_a_record_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for read in (read_trial, lambda folder: read_model(folder, "resnet18")):
        with pytest.raises(FileNotFoundError):
            read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "record.json")


def test_a_result_that_was_moved_lies_where_it_is_found(tmp_path: Path) -> None:
    """Its record names the folder it was computed in, or, as those of data sets, none."""
    model = ModelRecord(
        key="student/abc",
        folder=Path("elsewhere"),
        model_name="resnet18",
        num_classes=2,
        image_size=32,
        curve=(EPOCH,),
        num_params=1,
        num_nonzero_params=1,
        macs=1,
        train_time_s=2.0,
    )
    row = json.loads(to_json(model))
    for folder in ({"folder": "elsewhere"}, {}):
        (tmp_path / "record.json").write_text(
            json.dumps({name: row[name] for name in row if name != "folder"} | folder)
        )
        assert read_model(tmp_path, "resnet20") == dataclasses.replace(model, folder=tmp_path, model_name="resnet20")


def test_numbers_stay_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"a": 1, "b": 0.1, "c": NaN}')
    found = read_record(dict[str, float], tmp_path)
    assert (found["a"], type(found["a"])) == (1, int)
    assert found["b"] == 0.1
    assert math.isnan(found["c"])


def test_a_stage_that_meets_an_undecodable_parent_may_try_again(tmp_path: Path) -> None:
    """A file can be restored; a remembered failure would outlive that."""
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "record.json").write_text("{")
    store, key = Store(tmp_path / "store"), stage_key("student", version=1)

    def compute(folder: Path) -> typing.Generator[None, None, None]:
        read_trial(parent)
        (folder / "record.json").write_text("{}")
        yield

    with pytest.raises(UndecodableError, match="parent"):
        list(store.obtain(key, compute))
    assert store.failure(key) is None
    (parent / "record.json").write_text(to_json(TRIAL))
    list(store.obtain(key, compute))
    assert store.find(key) is not None


def test_a_field_of_a_type_that_json_has_not_is_our_own_mistake() -> None:
    with pytest.raises(TypeError, match="cannot be decoded"):
        decode(set[int], [1], where="x")
