"""`compress`: a network and images in memory go all the way; what cannot is told in one line."""

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sweeps import compress
from sweeps.running.interface.given_images import write_images
from sweeps.running.interface.given_model import GivenModel, importable, write_model
from sweeps.running.interface.result import Result
from trainables.records.stages import DatasetRecord
from trainables.stages.models.build import build_model

MEAN, STD = 0.3, 0.4


class Small(nn.Module):
    """A user's network of grey images of 8 pixels."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(image)))
        return self.head(torch.relu(self.second(hidden)).mean((2, 3)))


class Digits:
    """A map-style data set."""

    classes = tuple(map(str, range(10)))

    def __init__(self, part: slice) -> None:
        there = load_digits()
        self.images, self.labels = (there.images[part] / 16).astype(np.float32), there.target[part]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[index])[None], int(self.labels[index])


TRAIN, TEST = Digits(slice(0, 900)), Digits(slice(900, None))


@pytest.fixture(scope="module")
def trained() -> Small:
    torch.manual_seed(0)
    model = Small()
    images = (torch.from_numpy(TRAIN.images)[:, None] - MEAN) / STD
    labels = torch.from_numpy(TRAIN.labels)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(8):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, data: Digits) -> float:
    model.eval()
    with torch.no_grad():
        found = model((torch.from_numpy(data.images)[:, None] - MEAN) / STD).argmax(1)
    return float((found.numpy() == data.labels).mean())


@pytest.mark.ray
@pytest.mark.slow
def test_a_network_in_memory_goes_all_the_way(trained: Small, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    environment = dict(os.environ)
    small = {
        "student_epochs": 12,
        "recovery_epochs": 1,
        "latency_seconds": 0.2,
        "latency_max_attempts": 1,
        "batch_size": 64,
        "flip": False,
    }
    where = {"out": tmp_path / "runs", "data_dir": tmp_path / "data"}
    result = compress(
        trained, train=TRAIN, test=TEST, mean=MEAN, std=STD, trials=2, crop="none", cpus=2, pruning_ratio="0:0.5",
        quiet=True, **small, **where,
    )  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert environment.items() <= {**os.environ}.items()
    assert os.environ.get("PYTHONPATH") == environment.get("PYTHONPATH")
    front = result.front
    assert len(front) >= 1
    teacher = result.runs.frame.query("stage == 'teacher'").iloc[0]
    seen = Digits(slice(900, None))
    seen.images = np.round(seen.images * 255) / np.float32(255)  # sweeps keep images as bytes
    assert teacher["test_accuracy"] == pytest.approx(accuracy(trained, seen), abs=1e-6), "it sees other images"
    best = result.best(min_accuracy=0.5)
    assert best["val_accuracy"] == result.runs.frame.query("stage == 'candidate'")["val_accuracy"].max()
    check_files(result, int(best["trial_number"]), float(best["test_accuracy"]), tmp_path)
    with pytest.raises(ValueError, match=r"Nothing fits \{'max_latency_ms': 1e-06\}; nearest is trial \d: "):
        result.best(max_latency_ms=1e-6)


def check_files(result: Result, number: int, expected: float, tmp_path: Path) -> None:
    pixels = np.repeat(TEST.images[:, None], 3, axis=1)
    logits = result.load(number).run(None, {"image": np.rint(pixels * 255).astype(np.float32) / 255})[0]
    assert (logits.argmax(1) == TEST.labels).mean() == pytest.approx(expected, abs=1e-6)
    assert result.path("most_accurate").is_file()
    shipped = result.export(tmp_path / "ship", number)
    assert (shipped / "predict.py").is_file() and (shipped / "model.onnx").is_file()
    with pytest.raises(ValueError, match="which='best' must be a trial's number or one of most_accurate, "):
        result.path("best")
    with pytest.raises(ValueError, match="which=99: no finished trial"):
        result.load(99)


SEEN = DatasetRecord(
    name="x", folder=Path(), fingerprint="", class_names=("a",) * 10, image_size=8, num_train=1, num_val=1, num_test=1,
    mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7),
)  # fmt: skip


def test_the_sweeps_normalisation_is_undone(trained: Small) -> None:
    pixels = torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8)
    sweeps = (pixels - torch.tensor(SEEN.mean).view(3, 1, 1)) / torch.tensor(SEEN.std).view(3, 1, 1)
    given = GivenModel(trained.eval(), SEEN, mean=[MEAN] * 3, std=[STD] * 3, channels=1)
    assert torch.allclose(given(sweeps), trained((pixels[:, :1] - MEAN) / STD), atol=1e-5)
    assert given.state_dict().keys() == {f"model.{name}" for name in trained.state_dict()}


def test_equal_networks_have_one_name_and_a_worker_builds_them_untrained(trained: Small, tmp_path: Path) -> None:
    settings = {"mean": 0, "std": 1, "channels": 1}
    name, weights = write_model(trained, SEEN, tmp_path, **settings)
    assert write_model(trained, SEEN, tmp_path, **settings) == (name, weights)
    other = write_model(Small(), SEEN, tmp_path, **settings)[0]
    assert name != other != write_model(trained, SEEN, tmp_path, mean=0.1, std=1, channels=1)[0]
    with importable(tmp_path):
        built = build_model(name, num_classes=10, image_size=8)
    assert not torch.equal(built.model.first.weight, trained.first.weight)
    built.load_state_dict(torch.load(weights))
    assert torch.equal(built.model.first.weight, trained.first.weight)
    assert str(tmp_path) not in sys.path


def test_a_lambda_is_taken_and_a_lock_is_told(tmp_path: Path) -> None:
    model = Small()
    model.scale = lambda x: 2 * x
    write_model(model, SEEN, tmp_path, mean=0, std=1, channels=1)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"model: Small cannot be pickled \(TypeError: cannot pickle '_thread.lock'"):
        write_model(model, SEEN, tmp_path, mean=0, std=1, channels=1)
    with pytest.raises(ValueError, match=r"model must be a torch\.nn.Module, but got str"):
        write_model("resnet18", SEEN, tmp_path, mean=0, std=1, channels=1)
    with pytest.raises(
        ValueError, match=r"std must be a number or three, those of std above 0, but got std=\[1, 0, 1\]"
    ):
        write_model(Small(), SEEN, tmp_path, mean=0, std=[1, 0, 1], channels=1)


GREY = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
COLOUR = np.stack([GREY, GREY + 1, GREY + 2], axis=-1)


@pytest.mark.parametrize(
    ("images", "channels"),
    [
        (GREY, 1),
        (GREY[..., None], 1),
        (torch.from_numpy(GREY)[:, None], 1),
        (torch.from_numpy(GREY)[:, None].float() / 255, 1),
        (COLOUR, 3),
        (COLOUR.astype(np.int64), 3),
        (COLOUR / 255, 3),
        (np.moveaxis(COLOUR, -1, 1), 3),
        (torch.from_numpy(COLOUR).movedim(-1, 1), 3),
        ([Image.fromarray(image) for image in COLOUR], 3),
        ([Image.fromarray(image) for image in GREY], 1),
    ],
)
@pytest.mark.parametrize("form", ["pairs", "dicts", "arrays"])
def test_images_of_every_form_are_written_as_they_are(images: object, channels: int, form: str, tmp_path: Path) -> None:
    data = {
        "pairs": [*zip(images, torch.tensor([1, 0]), strict=True)],
        "dicts": [{"image": images[0], "label": 1}, {"image": images[1], "label": 0}],
        "arrays": (images, np.array([1, 0])),
    }[form]
    given = write_images(data, data, tmp_path, class_names=("cat", "dog"))
    assert given.channels == channels
    expected = COLOUR if channels == 3 else np.repeat(GREY[..., None], 3, -1)
    for index, name in enumerate(("dog", "cat")):
        for split in ("train", "test"):
            written = np.asarray(Image.open(given.folder / split / name / f"{index:07}.png"))
            assert np.array_equal(written, expected[index])
    assert write_images(data, data, tmp_path, class_names=("cat", "dog")) == given
    assert [path.name for path in tmp_path.iterdir()] == [given.folder.name]


def test_classes_keep_the_order_of_their_labels(tmp_path: Path) -> None:
    data = ([*np.repeat(GREY, 6, 0)], [*range(12)])
    pairs = [*zip(*data, strict=True)]
    folder = write_images(pairs, pairs, tmp_path, class_names=None).folder
    assert sorted(path.name for path in (folder / "train").iterdir())[:3] == ["00", "01", "02"]
    names = [f"{letter}/x" for letter in "zyxwvutsrqpo"]
    folder = write_images(pairs, pairs, tmp_path, class_names=names).folder
    assert sorted(path.name for path in (folder / "train").iterdir())[:2] == ["00-z_x", "01-y_x"]


class Endless:
    dataset = ()


GOOD = [(GREY[0], 0), (GREY[1], 1)]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (Endless(), "train must be .*, but got Endless; give train.dataset"),
        (3, "train must be .*, but got int"),
        ([], "train is empty"),
        ((GREY, np.array([1])), "train: as many labels as images must come, but got 2 and 1"),
        ([GREY[0]], r"train\[0\] must be \(image, label\), but got ndarray"),
        ([(GREY[0], 0.5)], r"The label of train\[0\] must be a whole number from 0, but got 0.5"),
        ([(GREY[0], -1)], "must be a whole number from 0, but got -1"),
        ([(GREY[0], torch.tensor([0, 1]))], r"must be a whole number from 0, but got tensor\(\[0, 1\]\)"),
        ([(GREY[0] * 1.0, 0)], r"train\[0\]: its pixels go from 0 to 63, and must lie in 0 to 1"),
        ([(torch.randn(3, 8, 8), 0)], "leave Normalize out of the data set and give its numbers as mean= and std="),
        ([(np.full((8, 8), np.nan), 0)], "its pixels go from nan to nan"),
        ([(np.zeros((8, 8, 4)), 0)], r"an image must be .*, but got float64 \(8, 8, 4\)"),
        ([(GREY[0], 0), (GREY[1], 2)], "train has no image of label 1; train and test need some of each from 0 to 2"),
        ([(GREY[0], 0)], "train has no image of label 1"),
    ],
)
def test_images_of_a_wrong_form_are_one_line(train: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        write_images(train, GOOD, tmp_path, class_names=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trails": 3}, r"unknown key in trails = 3; did you mean trials\?"),
        ({"trials": "many"}, 'trials = "many" must be a whole number'),
        ({"alpha": object()}, "alpha = <object object at .* must be a value, a list"),
        ({"teacher_model": "resnet18"}, "teacher_model='resnet18': `compress` decides that"),
        ({"val": [[[0.5] * 20] * 20] * 90}, r"unknown key in val = .{,160}; see --help"),
        ({"normalize": "imagenet"}, "normalize='imagenet': `compress` decides that; give mean= and std="),
        ({"pruning_ratio": 1.5}, "pruning_ratio"),
        ({"budget": "soon"}, "budget='soon' must be a time such as '90m'"),
        ({"budget": -1}, "budget=-1 must be a time"),
        ({"budget": "1h", "trials": 3}, "budget='1h' and trials=3: leave one of them out"),
        ({"test": None, "train": "nowhere"}, "nowhere: no such folder"),
        ({"train": "photos"}, "train='photos': a folder holds train/ and test/; leave test and class_names out"),
    ],
)
def test_a_wrong_argument_is_one_line(
    settings: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        compress(Small(), **{"train": GOOD, "test": GOOD, **settings})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_ray_that_runs_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"Ray is running in this process already, .*; call ray\.shutdown\(\) before"):
        compress(Small(), train=GOOD, test=GOOD)
