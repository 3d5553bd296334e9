"""Images without labels: decoded once, behind the training images, and never mixed with a label."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.trainables.stages.data.sample_folders import folder_config, make_folder
from trainables.config.candidate import AugmentConfig, DataConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.data.augment.views import make_views, targets
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.data.prepared import load, load_for_students, prepare, prepare_once
from trainables.stages.data.streaming import Streamed
from trainables.stages.pruning.cuts import gradient_images

SHADES = (10, 60, 110, 160, 210)


def make_unlabeled(root: Path) -> Path:
    """Five grey images of other sizes and modes, at three depths, in the order of their names."""
    for shade, name in zip(SHADES, ("a.png", "b/1.png", "b/2.jpg", "c/deep/x.png", "z.png"), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 30), shade).save(root / name)
    return root


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    root = make_folder(tmp_path / "photos")
    return folder_config(root, image_size=16, unlabeled=str(make_unlabeled(tmp_path / "more")))


@pytest.fixture
def record(config: DataConfig, tmp_path: Path) -> DatasetRecord:
    return prepare(config, tmp_path / "data")


def test_students_get_them_behind_the_training_images_in_their_size(record: DatasetRecord) -> None:
    images, labels = load_for_students(record)
    own, own_labels = load(record, "train")
    assert (record.num_unlabeled, len(images)) == (5, record.num_train + 5)
    assert np.array_equal(images[:-5], own)
    assert images[-5:].shape == (5, 3, 16, 16)
    assert images[-5:, 0, 0, 0].tolist() == list(SHADES)
    assert labels.tolist() == [*own_labels, *[-1] * 5]
    assert isinstance(images, np.memmap)


def test_the_labelled_images_and_all_that_follows_from_them_stay(
    record: DatasetRecord, config: DataConfig, tmp_path: Path
) -> None:
    without = prepare(dataclasses.replace(config, unlabeled=None), tmp_path / "data")
    assert without == dataclasses.replace(record, unlabeled=None, num_unlabeled=0, unlabeled_folder=None)
    assert [len(load(record, split)[1]) for split in ("train", "val", "test")] == [16, 4, 6]
    assert (
        not {"unlabeled", "num_unlabeled", "unlabeled_folder"}
        & json.loads((record.folder / "dataset.json").read_text()).keys()
    )


def test_their_digest_is_of_what_they_show_wherever_they_lie(
    record: DatasetRecord, config: DataConfig, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "more", tmp_path / "moved")
    moved = prepare(dataclasses.replace(config, unlabeled=str(tmp_path / "moved")), tmp_path / "data")
    assert moved.unlabeled == record.unlabeled
    Image.new("L", (20, 30), 11).save(tmp_path / "more" / "a.png")
    changed = prepare(config, tmp_path / "data")
    assert changed.unlabeled != record.unlabeled
    assert changed.fingerprint == record.fingerprint


def test_they_are_decoded_once_and_again_where_they_are_gone(
    record: DatasetRecord, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare_once(config, tmp_path / "data") == record
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "decode", None)
        assert prepare(config, tmp_path / "data") == record
    shutil.rmtree(str(record.unlabeled_folder))
    assert prepare_once(config, tmp_path / "data") == record
    assert len(load_for_students(record)[0]) == 16 + 5


def test_those_of_an_enlarged_data_set_are_stored_as_small_as_its_training_images(tmp_path: Path) -> None:
    more = str(make_unlabeled(tmp_path / "more"))
    record = prepare(DataConfig(train_limit=20, image_size=48, unlabeled=more), tmp_path)
    assert load_for_students(record)[0].shape == (25, 3, 32, 32)
    images = load_images(record, "cpu")
    assert (images.image_size, images.unlabeled) == (48, 5)


@pytest.mark.parametrize("streamed", [False, True])
def test_without_them_images_are_those_of_the_training_split(record: DatasetRecord, streamed: bool) -> None:
    images = load_images(record, "cpu")
    if streamed:
        images = dataclasses.replace(images, train_images=Streamed(images.train_images, torch.device("cpu")))
    labelled, index = images.labelled(), torch.arange(16)
    assert (labelled.unlabeled, labelled.train_labels.min().item(), len(labelled.train_images)) == (0, 0, 16)
    assert np.array_equal(labelled.train_images[index].numpy(), load(record, "train")[0])
    assert labelled.labelled() is labelled
    assert [images.take_first(count, 4).unlabeled for count in (15, 16, 18, 21, 99)] == [0, 0, 2, 5, 5]
    pixels, labels = zip(*gradient_images(images, torch.device("cpu"))(), strict=True)
    assert torch.cat(pixels).shape[0] == 16
    assert torch.cat(labels).min() == 0


def seen(images: Images, **augment: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What labels say of all samples, which have one, and whom each is mixed with."""
    views, index = make_views(images, AugmentConfig(crop="none", **augment), epoch=0), torch.arange(21)
    target, labelled = targets(views, images, index)
    assert labelled is not None
    return target, labelled, views.partners(index)[0]


def test_labels_are_told_from_their_absence(record: DatasetRecord) -> None:
    images = load_images(record, "cpu")
    target, labelled, _ = seen(images)
    assert labelled.tolist() == [True] * 16 + [False] * 5
    assert torch.equal(target[:16], images.train_labels[:16])
    assert target.min() >= 0  # the cross-entropy takes no other class, though nothing reads it
    own = images.labelled()
    assert targets(make_views(own, AugmentConfig(), epoch=0), own, torch.arange(16))[1] is None


def test_mixup_mixes_no_label_with_its_absence(record: DatasetRecord) -> None:
    images = load_images(record, "cpu")
    target, labelled, partner = seen(images, mixup_alpha=0.4)
    assert sorted(partner[:16].tolist()) == list(range(16))
    assert sorted(partner[16:].tolist()) == list(range(16, 21))
    assert labelled.tolist() == [True] * 16 + [False] * 5
    share = make_views(images, AugmentConfig(mixup_alpha=0.4), epoch=0).partners(torch.arange(21))[1][:16, None]
    one, other = (F.one_hot(images.train_labels[index], 2) for index in (torch.arange(16), partner[:16]))
    torch.testing.assert_close(target[:16], share * one + (1 - share) * other)


def refused(folder: Path, match: str, tmp_path: Path) -> None:
    config = folder_config(make_folder(tmp_path / "photos"), unlabeled=str(folder))
    with pytest.raises(ValueError, match=rf"^--unlabeled \S+: {match}") as caught:
        prepare(config, tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder; give an existing one", tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    refused(tmp_path / "one.png", "no such folder; give an existing one", tmp_path)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "readme.txt").touch()
    refused(tmp_path / "more", "no images in it; add some or leave the flag out", tmp_path)


def test_broken_image(tmp_path: Path) -> None:
    (make_unlabeled(tmp_path / "more") / "b" / "0.png").write_bytes(b"no image")
    refused(tmp_path / "more", r"cannot read image b/0\.png \(.*\); replace it or remove it", tmp_path)
    assert not list((tmp_path / "data" / "decoded").glob("*.part"))


def test_dangling_link(tmp_path: Path) -> None:
    (make_unlabeled(tmp_path / "more") / "gone.png").symlink_to(tmp_path / "nothing.png")
    refused(tmp_path / "more", r"gone\.png cannot be read \(No such file", tmp_path)
