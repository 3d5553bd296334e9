import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.stages.data.sample_folders import folder_config, make_folder
from trainables.config.candidate import AugmentConfig, DataConfig
from trainables.stages.data import prepared
from trainables.stages.data.augment.views import make_views
from trainables.stages.data.decoding import to_array
from trainables.stages.data.on_device import load_images
from trainables.stages.data.prepared import load, prepare
from trainables.stages.export.stage import calibration_pixels
from trainables.stages.pruning.cuts import gradient_images

SPLITS = ("train", "val", "test")


def test_digits_have_documented_counts_and_class_balance(tmp_path: Path) -> None:
    record = prepare(DataConfig(), tmp_path)
    assert (record.num_train, record.num_val, record.num_test) == (1294, 144, 359)
    assert (record.name, record.image_size, record.num_classes) == ("digits", 32, 10)
    for split in SPLITS:
        images, labels = load(record, split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert images.shape == (len(labels), 3, 32, 32)
        assert np.ptp(np.bincount(labels)) <= 0.1 * len(labels) / 10 + 2


def test_arrays_are_read_only_memory_maps(tmp_path: Path) -> None:
    images, _ = load(prepare(DataConfig(), tmp_path), "train")
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`split` must be one of train, val, test, but got 'validation'"):
        load(prepare(DataConfig(), tmp_path), "validation")


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    record = prepare(folder_config(make_folder(tmp_path / "photos")), tmp_path)
    pixels = load(record, "train")[0] / 255
    assert record.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert record.std == pytest.approx(pixels.std(axis=(0, 2, 3)))


def test_statistics_of_constant_images_do_not_divide_by_zero() -> None:
    mean, std = prepared._compute_statistics(np.full((2, 3, 8, 8), 51, dtype=np.uint8))
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == pytest.approx((1 / 255,) * 3)


def test_a_process_looks_at_the_files_once_while_what_it_found_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_config(make_folder(tmp_path / "photos"))
    looked: list[DataConfig] = []
    monkeypatch.setattr(prepared, "prepare", lambda config, _: looked.append(config) or prepare(config, tmp_path))
    first = prepared.prepare_once(config, tmp_path)
    assert prepared.prepare_once(config, tmp_path) == first
    assert len(looked) == 1
    shutil.rmtree(first.folder)
    assert prepared.prepare_once(config, tmp_path) == first
    assert len(looked) == 2
    assert load(first, "train")[0].shape[0] == first.num_train


def test_second_call_is_a_hit_and_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder_config(make_folder(tmp_path / "photos"))
    first = prepare(config, tmp_path)
    monkeypatch.setattr(prepared, "_decode", None)
    start = time.perf_counter()
    assert prepare(config, tmp_path) == first
    assert time.perf_counter() - start < 0.1


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path: Path) -> None:
    digest = prepared._digest(DataConfig())
    part = tmp_path / "decoded" / f"{digest}.part"
    part.mkdir(parents=True)
    (part / "train_images.npy").write_text("half")
    assert prepare(DataConfig(), tmp_path).num_train == 1294
    assert sorted(p.name for p in (tmp_path / "decoded").iterdir()) == [digest, f"{digest}.lock"]


def test_failed_decoding_leaves_nothing_behind(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "test" / "dog" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"test/dog/bad\.png"):
        prepare(folder_config(root, image_size=16), tmp_path)
    assert [p.suffix for p in (tmp_path / "decoded").iterdir()] == [".lock"]


def test_reading_data_does_not_import_torch() -> None:
    code = (
        "import sys, trainables.stages.data.prepared as d; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equal_content_elsewhere_has_the_same_fingerprint_and_no_path_in_its_name(tmp_path: Path) -> None:
    here = prepare(folder_config(make_folder(tmp_path / "a" / "photos")), tmp_path / "data_a")
    there = prepare(folder_config(make_folder(tmp_path / "b" / "photos")), tmp_path / "data_b")
    assert here.fingerprint == there.fingerprint
    assert here.name == "folder:photos"
    assert str(tmp_path) not in (here.folder / "dataset.json").read_text()


@pytest.mark.parametrize("changes", [{"split_seed": 1}, {"val_fraction": 0.3}, {"train_limit": 6}, {"image_size": 8}])
def test_another_split_or_size_has_another_fingerprint(tmp_path: Path, changes: dict[str, object]) -> None:
    root = make_folder(tmp_path / "photos")
    assert (
        prepare(folder_config(root), tmp_path).fingerprint
        != prepare(folder_config(root, **changes), tmp_path).fingerprint
    )


def test_another_normalisation_is_for_other_networks_and_the_same_images(tmp_path: Path) -> None:
    own, theirs, same = (
        prepare(DataConfig(normalize=words), tmp_path)
        for words in ("dataset", "imagenet", "0.485,0.456,0.406/0.229,0.224,0.225")
    )
    assert (theirs.mean, theirs.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert own.folder == theirs.folder
    assert own.fingerprint != theirs.fingerprint == same.fingerprint
    assert load_images(theirs, "cpu").std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_changed_file_is_decoded_again(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    before = prepare(folder_config(root), tmp_path)
    Image.new("RGB", (16, 16), "red").save(root / "train" / "cat" / "0.png")
    assert prepare(folder_config(root), tmp_path).fingerprint != before.fingerprint


PREPARE_AND_REPORT = """
import sys
from pathlib import Path
from trainables.config.candidate import DataConfig
from trainables.stages.data import prepared

decode, dataset, data_dir = prepared._decode, sys.argv[1], Path(sys.argv[2])
prepared._decode = lambda *args: (print("decoded"), decode(*args))
record = prepared.prepare(DataConfig(dataset=dataset, val_fraction=0.2), data_dir)
print(record.fingerprint, prepared.load(record, "train")[0].sum())
"""


def test_four_processes_decode_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", per_class=100)
    command = [sys.executable, "-c", PREPARE_AND_REPORT, f"folder:{root}", str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [line for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert lines.count("decoded") == 1
    assert len(lines) == 5
    assert len(set(lines)) == 2  # "decoded", and one fingerprint and sum


def test_image_size_scales_every_data_set(tmp_path: Path) -> None:
    assert load(prepare(DataConfig(image_size=24), tmp_path), "val")[0].shape[1:] == (3, 24, 24)


def test_images_that_are_to_be_enlarged_are_stored_small_for_training(tmp_path: Path) -> None:
    """CIFAR-10 at 224 pixels would take 7.5 GB."""
    own, large = prepare(DataConfig(), tmp_path), prepare(DataConfig(image_size=64), tmp_path)
    assert large.image_size == 64
    assert np.array_equal(load(large, "train")[0], load(own, "train")[0])
    assert [load(large, split)[0].shape[1:] for split in ("val", "test")] == [(3, 64, 64), (3, 64, 64)]
    assert large.fingerprint != own.fingerprint


def test_whoever_looks_at_training_images_sees_them_enlarged(tmp_path: Path) -> None:
    own = prepare(DataConfig(train_limit=64), tmp_path)
    large = prepare(DataConfig(train_limit=64, image_size=48), tmp_path)
    images = load_images(large, "cpu")
    assert (images.image_size, images.train_images.shape[-1]) == (48, 32)
    view = make_views(images, AugmentConfig(flip=False, crop="none"), epoch=0).batch(
        images.train_images, torch.arange(4)
    )
    (pixels, _), *_ = gradient_images(images, torch.device("cpu"))()
    calibration = calibration_pixels(large, 64)
    assert view.shape[1:] == pixels.shape[1:] == calibration.shape[1:] == (3, 48, 48)
    np.testing.assert_allclose(calibration[:4], view, atol=1e-6)
    same = calibration_pixels(own, 64)
    np.testing.assert_array_equal(same, load(own, "train")[0].astype(np.float32) / np.float32(255))
    pillow = np.stack([to_array(Image.fromarray(image.transpose(1, 2, 0)), 48) for image in load(own, "train")[0]])
    assert np.abs(255 * calibration - pillow).max() < 1.01  # Pillow rounds to whole levels, twice


def test_train_limit_leaves_validation_and_test_alone(tmp_path: Path) -> None:
    everything, few = prepare(DataConfig(), tmp_path), prepare(DataConfig(train_limit=57), tmp_path)
    assert (few.num_train, few.num_val, few.num_test) == (57, everything.num_val, everything.num_test)
    for split in ("val", "test"):
        assert np.array_equal(load(few, split)[0], load(everything, split)[0])


def test_val_folder_is_used_as_it_is(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "blue").save(root / "val" / name / "x.png")
    record = prepare(folder_config(root), tmp_path)
    assert (record.num_train, record.num_val, record.num_test) == (20, 2, 6)
    assert load(record, "val")[0][0, :, 0, 0].tolist() == [0, 0, 255]


def test_negative_split_seed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--split-seed -1: must be 0 or more"):
        prepare(DataConfig(split_seed=-1), tmp_path)


def test_record_on_disk_is_the_record_that_is_returned(tmp_path: Path) -> None:
    record = prepare(DataConfig(), tmp_path)
    row = json.loads((record.folder / "dataset.json").read_text())
    assert row["fingerprint"] == record.fingerprint
    assert "folder" not in row


@pytest.mark.parametrize("name", ["dataset.json", "train_images.npy", "val_labels.npy"])
@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "flip", "other", "gone"])
@pytest.mark.parametrize("again", [prepare, prepared.prepare_once])
def test_damaged_images_are_decoded_again(tmp_path: Path, name: str, damage: str, again) -> None:
    """A cut array failed every trial, for good; and zeros would have been trained on."""
    config = folder_config(make_folder(tmp_path / "photos", per_class=5))
    record = again(config, tmp_path)
    path = record.folder / name
    whole = path.read_bytes()
    harmed = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "zeros": whole[:-64] + bytes(64),
        "flip": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "other": b"[" * 100_000,
        "gone": b"",
    }
    time.sleep(0.02)  # later than the file system's clock tick, as any disk would be
    path.write_bytes(harmed[damage])
    if damage == "gone":
        path.unlink()
    assert again(config, tmp_path) == record
    assert [len(load(record, split)[0]) for split in SPLITS] == [record.num_train, record.num_val, record.num_test]
    assert prepared._fingerprint(
        record.class_names, record.image_size, {split: load(record, split) for split in SPLITS}
    ) == (record.fingerprint)


def test_copied_images_are_compared_once_and_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder_config(make_folder(tmp_path / "photos", per_class=5))
    record = prepare(config, tmp_path)
    row = json.loads((record.folder / "dataset.json").read_text())
    (record.folder / "dataset.json").write_text(json.dumps({key: row[key] for key in row if key != "files"}))  # older
    monkeypatch.setattr(prepared, "_decode", None)
    assert prepare(config, tmp_path) == record
    monkeypatch.setattr(prepared, "_fingerprint", None)
    assert prepare(config, tmp_path) == record
