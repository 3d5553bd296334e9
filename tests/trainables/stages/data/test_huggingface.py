"""Data sets in the form of the Hugging Face hub: local parquet and arrow files, and the hub's own cache."""

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image

from trainables.config.candidate import DataConfig
from trainables.stages.data import prepared
from trainables.stages.data.prepared import load, prepare
from trainables.stages.data.sources.huggingface import is_local

SIDE = 16


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def labelled(start: int, count: int) -> datasets.Dataset:
    """Images and their classes, as `datasets` itself makes and writes them."""
    rows = {"image": [Image.fromarray(pixels(start + i)) for i in range(count)], "label": [i % 2 for i in range(count)]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    return datasets.Dataset.from_dict(rows, features=kinds)


SPLITS = {"train": (0, 20), "test": (100, 6)}


def parquet_folder(root: Path, splits: Mapping[str, tuple[int, int]] = SPLITS) -> Path:
    for name, (start, count) in splits.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        labelled(start, count).to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def arrow_folder(root: Path) -> Path:
    made = {name: labelled(start, count) for name, (start, count) in SPLITS.items()}
    datasets.DatasetDict(made).save_to_disk(root, num_shards={"train": 2, "test": 1})
    return root


def plain_folder(root: Path, **columns: Any) -> Path:
    """Parquet files that `datasets` has not written: columns have no features."""
    root.mkdir(parents=True)
    for split, (start, count) in SPLITS.items():
        rows = {name: [make(start + i, i) for i in range(count)] for name, make in columns.items()}
        pq.write_table(pa.table(rows), root / f"{split}.parquet")
    return root


def config(root: Path | str, **more: Any) -> DataConfig:
    return DataConfig(dataset=f"hf:{root}", **{"val_fraction": 0.2, **more})


def refused(root: Path | str, match: str, **more: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        prepare(config(root, **more), Path(os.environ["PYTEST_DATA"]))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--dataset hf:{root}")


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DATA", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


@pytest.mark.parametrize("make", [parquet_folder, arrow_folder])
def test_pixels_classes_and_splits_are_those_of_the_files(make: Any, tmp_path: Path, data_dir: Path) -> None:
    root = make(tmp_path / "pets")
    record = prepare(config(root), data_dir)
    assert (record.name, record.class_names, record.image_size) == ("hf:./pets", ("zebra", "ant"), SIDE)
    assert (record.num_train, record.num_val, record.num_test) == (16, 4, 6)
    images, labels = load(record, "test")
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(images[3], pixels(103).transpose(2, 0, 1))
    assert [path.name for path in data_dir.iterdir()] == ["decoded"], "the copy in arrow is gone"


def test_the_same_images_are_the_same_data_set_in_either_form(tmp_path: Path, data_dir: Path) -> None:
    one = prepare(config(parquet_folder(tmp_path / "one")), data_dir)
    other = prepare(config(arrow_folder(tmp_path / "other")), data_dir)
    assert one.fingerprint == other.fingerprint
    assert one.folder != other.folder
    labelled(7, 20).to_parquet(tmp_path / "one" / "data" / "train-00000-of-00001.parquet")
    changed = prepare(config(tmp_path / "one"), data_dir)
    assert changed.fingerprint != one.fingerprint


def test_a_validation_split_is_kept_and_stands_for_a_missing_or_hidden_test(tmp_path: Path, data_dir: Path) -> None:
    splits = {"train": (0, 10), "validation": (50, 4)}
    three = prepare(config(parquet_folder(tmp_path / "three", {**splits, "test": (100, 6)})), data_dir)
    assert (three.num_train, three.num_val, three.num_test) == (10, 4, 6)
    two = prepare(config(parquet_folder(tmp_path / "two", splits)), data_dir)
    assert (two.num_train, two.num_val, two.num_test) == (8, 2, 4)
    hidden = parquet_folder(tmp_path / "hidden", splits)
    without = labelled(100, 6).remove_columns("label").add_column("label", [-1] * 6)
    without.cast_column("label", labelled(0, 2).features["label"]).to_parquet(hidden / "data" / "test.parquet")
    assert prepare(config(hidden), data_dir).fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"img": lambda n, i: png(n), "label": lambda n, i: ("sheep", "cow")[i % 2]}, ("cow", "sheep")),
        ({"img": lambda n, i: {"bytes": png(n), "path": "/etc/passwd"}, "target": lambda n, i: (10, 9)[i % 2]}, "9 10"),
    ],
    ids=["bytes and words", "bytes beside a path and numbers"],
)
def test_columns_without_features(columns: Any, classes: Any, tmp_path: Path, data_dir: Path) -> None:
    record = prepare(config(plain_folder(tmp_path / "plain", **columns)), data_dir)
    assert record.class_names == (tuple(classes.split()) if isinstance(classes, str) else classes)
    images, labels = load(record, "test")
    assert labels.tolist() == [1, 0] * 3
    assert np.array_equal(images[5], pixels(105).transpose(2, 0, 1))


def test_paths_of_images_stay_inside_the_data_set(tmp_path: Path, data_dir: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(1))
    label = {"label": lambda n, i: i % 2}
    inside = plain_folder(tmp_path / "inside", image=lambda n, i: f"pictures/{n}.png", **label)
    (inside / "pictures").mkdir()
    for start, count in SPLITS.values():
        for n in range(start, start + count):
            (inside / "pictures" / f"{n}.png").write_bytes(png(n))
    images, _ = load(prepare(config(inside), data_dir), "test")
    assert np.array_equal(images[0], pixels(100).transpose(2, 0, 1))

    said = r"cannot read image train row 0 \(its path '.*' leads out of the data set\)"
    refused(plain_folder(tmp_path / "up", image=lambda n, i: "../secret.png", **label), said)
    refused(plain_folder(tmp_path / "rooted", image=lambda n, i: str(outside), **label), said)
    linked = plain_folder(tmp_path / "linked", image=lambda n, i: "link.png", **label)
    (linked / "link.png").symlink_to(outside)
    refused(linked, said)
    refused(plain_folder(tmp_path / "url", image=lambda n, i: "http://127.0.0.1:9/x.png", **label), "No such file")


def test_what_a_data_set_brings_is_not_executed(tmp_path: Path, data_dir: Path) -> None:
    root = parquet_folder(tmp_path / "pets")
    ran = tmp_path / "ran"
    (root / "pets.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../../*/*\n---\n")
    assert prepare(config(root), data_dir).num_test == 6
    postscript = plain_folder(
        tmp_path / "ps",
        image=lambda n, i: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        label=lambda n, i: i % 2,
    )
    refused(postscript, "cannot read image train row 0 .*cannot identify", image_size=16)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": lambda n, i: "a", "label": lambda n, i: i % 2}, "no column of images among text, label; call the"),
        ({"image": lambda n, i: png(n), "score": lambda n, i: 0.5}, "no column of labels among image, score; call the"),
        (
            {"left": lambda n, i: png(n), "right": lambda n, i: png(n), "label": lambda n, i: i % 2},
            r"several columns of images \(left, right\)",
        ),
        ({"image": lambda n, i: png(n), "label": lambda n, i: 3}, "column 'label' has 1 class; two classes"),
        ({"image": lambda n, i: png(n), "label": lambda n, i: "cx"[i > 6]}, "in column"),
        ({"image": lambda n, i: b"no image", "label": lambda n, i: i % 2}, "cannot read image train row 0"),
        (
            {"image": lambda n, i: None if n == 5 else png(n), "label": lambda n, i: i % 2},
            "train row 5 .*neither bytes",
        ),
    ],
)
def test_wrong_columns_are_named(columns: Any, said: str, tmp_path: Path) -> None:
    if said == "in column":  # train has the classes c and x, test one more
        root = plain_folder(tmp_path / "odd", **columns)
        pq.write_table(pa.table({"image": [png(0)], "label": ["owl"]}), root / "test.parquet")
        refused(root, "row 0 of test has the label 'owl' in column 'label', which is no class of train")
        return
    refused(plain_folder(tmp_path / "odd", **columns), said)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder; give an existing one")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no .parquet or .arrow file in it; take folder:PATH")
    refused(parquet_folder(tmp_path / "alone", {"train": (0, 4)}), r"needs the splits train and test .*but has train")
    odd = parquet_folder(tmp_path / "odd")
    (odd / "data" / "more.parquet").write_bytes(b"")
    refused(odd, r"data/more\.parquet is of no split; rename it")
    (odd / "data" / "more.parquet").rename(odd / "data" / "test-00001.parquet")
    refused(odd, r"cannot read .*test-00001\.parquet \(.*\); replace or remove")
    wide = plain_folder(tmp_path / "wide", image=lambda n, i: png(n), label=lambda n, i: i % 2)
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    pq.write_table(pa.table({"image": [file.getvalue()], "label": [1]}), wide / "test.parquet")
    with pytest.raises(ValueError, match=r"--image-size is not given .* \(test row 0 is 40 x 30\); add --image-size"):
        prepare(config(wide), tmp_path / "prepared")


def test_without_the_library_the_fix_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        parquet_folder(tmp_path / "pets"), r"needs the package datasets, .*pip install 'compression-sweeps\[datasets\]'"
    )


def test_a_folder_is_told_from_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert [is_local(f"hf:{text}") for text in ("photos", "./x", "/x", "~/x")] == [True] * 4
    assert not any(is_local(name) for name in ("hf:me/pets", "hf:me/pets:small", "folder:photos", "hf:"))
    assert prepared.absolute(DataConfig(dataset="hf:photos")).dataset == f"hf:{tmp_path}/photos"
    assert prepared.public_name(f"hf:{tmp_path}/photos") == "hf:./photos"
    assert prepared.public_name("hf:./photos") == "hf:./photos"
    assert prepared.public_name("hf:me/pets:small") == "hf:me/pets:small"


OFFLINE = """
import sys
from pathlib import Path
from trainables.config.candidate import DataConfig
from trainables.stages.data.prepared import prepare
for name in sys.argv[2:]:
    try:
        record = prepare(DataConfig(dataset=name, val_fraction=0.2), Path(sys.argv[1]))
        print(record.name, record.class_names, record.num_train, record.num_val, record.num_test)
    except ValueError as error:
        print(error)
"""


def test_without_a_network_the_hubs_cache_is_enough(tmp_path: Path, data_dir: Path) -> None:
    """The cache is one that `datasets` writes when it reads me/pets from the hub."""
    root = parquet_folder(tmp_path / "pets")
    files = {split: [str(root / "data" / f"{split}-00000-of-00001.parquet")] for split in SPLITS}
    home = tmp_path / "home"
    cache = home / "datasets"
    Parquet(cache_dir=str(cache), dataset_name="pets", hash="abc", data_files=files).download_and_prepare()
    (made,) = (cache / "pets").iterdir()
    (cache / "me___pets").mkdir()
    made.rename(cache / "me___pets" / "default")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(data_dir), "hf:me/pets", "hf:me/nets", "hf:me/pets:tiny", "hf:a b"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)},
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "hf:me/pets ('zebra', 'ant') 16 4 6"
    assert "--dataset hf:me/nets: cannot be had from the hub or its cache (ConnectionError" in lines[1]
    assert "set HF_HUB_OFFLINE=1" in lines[1]
    assert lines[2].startswith("--dataset hf:me/pets:tiny: cannot be read (ValueError: Couldn't find cache for me/pets")
    assert lines[2].endswith("check NAME and CONFIG on the hub.")
    assert "--dataset hf:a b: must be hf:NAME or hf:NAME:CONFIG" in lines[3]
    assert len(lines) == 4
