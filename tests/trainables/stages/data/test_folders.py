from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainables.stages.data.sample_folders import folder_config, make_folder
from trainables.stages.data.prepared import load, prepare
from trainables.stages.export import stage
from trainables.stages.export.stage import calibration_pixels


def test_labels_follow_sorted_class_folders_and_pixels_their_files(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", classes=("zebra", "ant"))
    record = prepare(folder_config(root), tmp_path)
    assert record.class_names == ("ant", "zebra")
    images, labels = load(record, "test")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(root / "test" / "zebra" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(images[4], expected)


def test_files_are_compared_and_calibrated_on_images_of_every_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are read class by class: the first images are of one class."""
    monkeypatch.setattr(stage, "PARITY_IMAGES", 3)
    record = prepare(folder_config(make_folder(tmp_path / "photos", classes=("ant", "bee", "cat"))), tmp_path)
    for split, pixels in (("val", stage.parity_images(record).numpy()), ("train", calibration_pixels(record, 3))):
        images, labels = load(record, split)
        at = [int(np.abs(images / 255 - image).sum(axis=(1, 2, 3)).argmin()) for image in pixels]
        assert labels[at].tolist() == [0, 1, 2]


def test_hidden_and_other_files_are_ignored_and_links_and_subfolders_followed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    cat = root / "train" / "cat"
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt"):
        (cat / name).write_text("no image")
    (root / "train" / ".cache").mkdir()
    (cat / "link.PNG").symlink_to(cat / "0.png")
    (cat / "more").mkdir()
    Image.new("RGB", (16, 16)).save(cat / "more" / "x.bmp")
    record = prepare(folder_config(root), tmp_path)
    assert record.num_train + record.num_val == 22


def refused(root: Path, match: str, **changes: object) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        prepare(folder_config(root, **changes), root.parent / "data")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"--dataset folder:\S+nowhere: no such folder; give an existing one")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split(tmp_path: Path, split: str) -> None:
    root = make_folder(tmp_path / "photos")
    (root / split).rename(root / "other")
    refused(root, f"no folder '{split}' in it; put images in {split}/<class>/")


def test_split_without_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "test").rename(root / "old")
    (root / "test").mkdir()
    refused(root, "no class folder in test/; put images in test/<class>/")


def test_class_without_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "readme.txt").touch()
    refused(root, "no images in train/eel/; add some or remove the folder")


def test_single_class(tmp_path: Path) -> None:
    refused(make_folder(tmp_path / "photos", classes=("cat",)), "only the class 'cat' in train/; two classes")


def test_train_and_test_with_different_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "test" / "dog").rename(root / "test" / "wolf")
    refused(root, r"same classes, but test/ lacks dog and train/ lacks wolf; add or remove")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
@pytest.mark.parametrize("image_size", [None, 16])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes, image_size: int | None) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "test" / "cat" / "5.png").write_bytes(content)
    refused(root, r"cannot read image test/cat/5\.png.*; replace it or remove it", image_size=image_size)


def test_truncated_jpeg_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    file = root / "test" / "cat" / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-100])
    refused(root, r"cannot read image test/cat/cut\.jpg \(.*truncated")


def test_dangling_link_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    (root / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nothing.png")
    refused(root, r"train/dog/gone\.png cannot be read \(No such file or directory\); replace it or remove it")


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    Image.new("RGB", (40, 30)).save(root / "test" / "cat" / "wide.png")
    refused(root, r"--image-size is not given .* \(test/cat/wide\.png is 40 x 30\); add --image-size")
    assert prepare(folder_config(root, image_size=16), tmp_path).num_test == 7


def test_train_limit_above_what_is_left(tmp_path: Path) -> None:
    refused(make_folder(tmp_path / "photos"), "--train-limit 17: only 16 training images are left", train_limit=17)


def test_train_limit_below_the_number_of_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", classes=("a", "b", "c"))
    refused(root, "--train-limit 2: fewer than the 3 classes; use at least 3", train_limit=2)


def test_val_fraction_too_small_for_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    refused(root, r"--val-fraction 0\.05: 1 of 20 images .* 2 classes .* use --val-fraction 0\.1 or", val_fraction=0.05)


def test_val_fraction_too_large_for_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    refused(root, r"--val-fraction 0\.96: 1 of 20 images for training .* use a smaller", val_fraction=0.96)


def test_class_with_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    for file in list((root / "train" / "dog").iterdir())[1:]:
        file.unlink()
    refused(root, r"--val-fraction 0\.2: class 'dog' has 1 training image, too few .* add images or a val/ folder")
