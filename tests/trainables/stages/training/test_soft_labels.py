import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.config.candidate import AugmentConfig, Candidate, CandidateConfig
from trainables.records.stages import DatasetRecord, ModelRecord, read_model
from trainables.stages.data import prepared
from trainables.stages.data.augment.views import Views, make_views, targets
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.models.stored import build_for, load_model, write_model
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import Batch, Loop, Turn, train
from trainables.stages.training.losses import hard_term, kd
from trainables.stages.training.soft_labels import SoftLabels
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Key, Store

AUGMENTS = {
    "crop": AugmentConfig(crop_padding=2),
    "mixup": AugmentConfig(crop_padding=2, mixup_alpha=0.4),
    "randaugment": AugmentConfig(crop_padding=2, randaugment_magnitude=9),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetRecord:
    config = CandidateConfig().replace(dataset="digits", train_limit=100)
    return prepared.prepare(config.data, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def images(dataset: DatasetRecord) -> Images:
    return load_images(dataset, "cpu")


@pytest.fixture(scope="module")
def teacher(dataset: DatasetRecord, images: Images, tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    """BatchNorm, no dropout: its evaluation mode differs from its training mode, and tells images apart."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    model = build_for("mobilenet_v3_small", dataset)
    pixels = Views(AUGMENTS["crop"], num_samples=dataset.num_train, epoch=0, image_size=32).batch(
        images.train_images, torch.arange(96)
    )
    with torch.no_grad():
        model.train()
        for _ in range(60):  # statistics of real images; untrained ones would call all of them alike
            model(images.normalise(pixels))
        model.eval()
        spread = model(images.normalise(pixels)).std(dim=0).mean()
        model.classifier[-1].weight.mul_(2 / spread)
    write_model(model, folder, key=Key("teacher", "0" * 24), name="mobilenet_v3_small", dataset=dataset, curve=())
    return read_model(folder, "mobilenet_v3_small")


def bank_of(
    kind: type[SoftLabels],
    teacher: ModelRecord,
    dataset: DatasetRecord,
    images: Images,
    store: Store,
    **changes: Any,
) -> SoftLabels:
    """The soft labels of a candidate with these settings."""
    settings = {"crop_padding": 2, "batch_size": 32, "student_epochs": 2, "recovery_epochs": 0, **changes}
    candidate = CandidateConfig().replace(**settings).resolve(dataset, device="cpu")
    place = Workspace(
        store=store, data=candidate.data, data_dir=store.here, device="cpu", threads=1, lock_dir=store.here
    )
    return kind(Bench(candidate=candidate, dataset=dataset, images=images, place=place), teacher, until=2)


def loop_of(candidate: Candidate, epochs: int = 1) -> Loop:
    return Loop(
        stage="student", epochs=epochs, learning_rate=1e-3, training=candidate.training, augment=candidate.augment
    )


class LiveTeacher(SoftLabels):
    """What the bank replaces: the teacher runs on every batch's own pixels."""

    def open(self, view: int, turn: Turn) -> None:
        self._network = load_model(self._teacher)

    def see(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return self._network(self._bench.images.normalise(batch.pixels))


class NextView(SoftLabels):
    """A bank that is off by one."""

    def open(self, view: int, turn: Turn) -> None:
        super().open(view + 1, turn)

    def __call__(self, view: int, index: torch.Tensor) -> torch.Tensor:
        return super().__call__(view + 1, index)


class LiveDistillation(Distillation):
    def __call__(self, logits_BC: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits = self._soft_labels.see(batch)
        self._soft_labels.__class__ = type("Bound", (LiveTeacher,), {"__call__": lambda self, view, index: logits})
        return super().__call__(logits_BC, batch)


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_a_student_of_the_bank_equals_one_of_the_live_teacher(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, augment: AugmentConfig, tmp_path: Path
) -> None:
    """Equal but for float16 in the bank: 11 bits of each logit."""
    settings = {"alpha": 1.0, "temperature": 2.0, **vars(augment)}
    students = []
    for kind, lesson in ((SoftLabels, Distillation), (LiveTeacher, LiveDistillation), (NextView, Distillation)):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        torch.manual_seed(1)
        model = build_for("alexnet_small", dataset)
        soft = bank_of(kind, teacher, dataset, images, Store(tmp_path / "store"), **settings)
        candidate = soft._bench.candidate
        loop = loop_of(candidate)
        *_, last = train(model, loop, images, lesson(candidate, soft, loop), folder)
        students.append((model, last))
    (from_bank, bank), (from_live, live), (from_next, wrong) = students
    assert bank.train_loss == pytest.approx(live.train_loss, rel=1e-3)
    far, near = (_distance(other, from_live) for other in (from_next, from_bank))
    assert near < 0.1 * far
    assert wrong.train_loss != pytest.approx(live.train_loss, rel=1e-2)


def _distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Root of the summed squares of what differs in their weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum((a - b).detach().pow(2).sum().item() for a, b in pairs) ** 0.5


def test_the_bank_is_mapped_not_read(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    """Trials of one node share its pages."""
    mixup = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path), **vars(AUGMENTS["mixup"]))
    mixup.open(0, nullcontext)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("what a process has mapped is read from /proc")
    assert "logits.npy" in maps.read_text()


def test_the_bank_holds_the_teachers_logits_of_that_view_for_any_batch(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    augment = AUGMENTS["mixup"]
    mixup = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path), **vars(augment))
    mixup.open(3, nullcontext)
    index = torch.tensor([7, 90, 0])
    pixels = Views(augment, num_samples=dataset.num_train, epoch=3, image_size=32).batch(images.train_images, index)
    with torch.no_grad():
        expected = load_model(teacher)(images.normalise(pixels))
    torch.testing.assert_close(mixup(3, index), expected, rtol=2e-3, atol=2e-3)


def test_a_view_is_computed_once_and_shared(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    steps = []

    def turn() -> nullcontext[None]:
        steps.append(1)
        return nullcontext()

    first = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path))
    first.open(0, turn)
    filled = len(steps)
    second = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path))
    second.open(0, turn)
    assert len(steps) == filled > 0
    index = torch.arange(dataset.num_train)
    torch.testing.assert_close(first(0, index), second(0, index), rtol=0, atol=0)


def test_who_would_wait_for_a_view_fills_a_later_one(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    """Two trials that start together; the first is held in view 0 until the second has filled view 1."""
    filling, ahead = threading.Event(), threading.Event()

    def held() -> nullcontext[None]:
        filling.set()
        assert ahead.wait(60), "nothing was filled ahead"
        return nullcontext()

    def free() -> nullcontext[None]:
        ahead.set()
        return nullcontext()

    def crop() -> SoftLabels:
        return bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path))

    with ThreadPoolExecutor(1) as other:
        first = other.submit(crop().open, 0, held)
        assert filling.wait(60)
        second = crop()
        second.open(0, free)
        first.result()
    assert len(list(tmp_path.glob("soft_labels/*/logits.npy"))) == 2
    steps: list[int] = []
    second.open(1, lambda: nullcontext(steps.append(1)))
    assert not steps


def test_views_augmentations_and_teachers_do_not_share(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for augment in (AUGMENTS["crop"], AUGMENTS["mixup"]):
        for view in (0, 1):
            bank_of(SoftLabels, teacher, dataset, images, store, **vars(augment)).open(view, nullcontext)
    assert len(list(tmp_path.glob("soft_labels/*/logits.npy"))) == 4


def test_precisions_do_not_share(dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path) -> None:
    for precision in (None, "amp", "fp32"):
        bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path), train_precision=precision).open(0, nullcontext)
    assert len(list(tmp_path.glob("soft_labels/*/logits.npy"))) == 2  # none is fp32 on a CPU


def test_alpha_0_asks_no_teacher(dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path) -> None:
    soft = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path), alpha=0.0)
    lesson = Distillation(soft._bench.candidate, soft, loop_of(soft._bench.candidate))
    lesson.open(0, nullcontext)
    assert not list(tmp_path.iterdir())


def test_with_annealing_the_teacher_teaches_less_every_epoch_and_the_rest_are_labels_alone(
    dataset: DatasetRecord, images: Images, teacher: ModelRecord, tmp_path: Path
) -> None:
    """The gradient of every epoch is that of its own alpha; no logits are stored for epochs without a teacher."""
    soft = bank_of(SoftLabels, teacher, dataset, images, Store(tmp_path), alpha=0.8, kd_anneal=0.5)
    candidate = soft._bench.candidate
    lesson = Distillation(candidate, soft, loop_of(candidate, epochs=4))
    logits, target = torch.randn(3, 10, requires_grad=True), torch.tensor([1, 2, 3])
    for view, alpha in enumerate((0.8, 0.4, 0.0, 0.0)):
        lesson.open(view, nullcontext)
        batch = Batch(index=torch.tensor([0, 1, 2]), view=view, pixels=torch.empty(0), target=target)
        (found,) = torch.autograd.grad(lesson(logits, batch), logits)
        hard = hard_term(logits, target, label_smoothing=candidate.training.label_smoothing)
        taught = kd(logits, soft(view, batch.index), target, settings=candidate.student).mean() if alpha else 0.0
        (expected,) = torch.autograd.grad((1 - alpha) * hard + alpha * taught, logits)
        torch.testing.assert_close(found, expected)
    assert len(list(tmp_path.glob("soft_labels/*/logits.npy"))) == 2


@pytest.mark.parametrize("augment", ["crop", "mixup"])
def test_images_without_labels_are_taught_by_the_bank_alone(
    teacher: ModelRecord, dataset: DatasetRecord, tmp_path: Path, augment: str
) -> None:
    """Real logits of the same pixels, and the gradient of alpha = 1 at a student of alpha = 0.7."""
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    data = CandidateConfig().replace(dataset="digits", train_limit=100, unlabeled=str(tmp_path)).data
    both = prepared.prepare(data, dataset.folder.parents[1])
    images = load_images(both, "cpu")
    settings = {**vars(AUGMENTS[augment]), "unlabeled": "more", "kd_anneal": 0.5}
    bank = bank_of(SoftLabels, teacher, both, images, Store(tmp_path / "store"), **settings)
    bank.open(0, nullcontext)

    index, views = torch.tensor([3, 102, 106]), make_views(images, AUGMENTS[augment], epoch=0)
    pixels = views.batch(images.train_images, index)
    with torch.no_grad():
        expected = load_model(teacher).eval()(images.normalise(pixels))
    torch.testing.assert_close(bank(0, index), expected, rtol=1e-2, atol=1e-2)

    logits, candidate = torch.zeros(3, 10, requires_grad=True), bank._bench.candidate
    lesson = Distillation(candidate, bank, loop_of(candidate, epochs=2))
    for view in (0, 1):  # in the last, the others learn from their labels alone
        lesson.open(view, nullcontext)
        target, labelled = targets(make_views(images, AUGMENTS[augment], epoch=view), images, index)
        batch = Batch(index=index, view=view, pixels=pixels, target=target, labelled=labelled)
        (found,) = torch.autograd.grad(lesson(logits, batch), logits)
        soft = kd(logits, bank(view, index), target, settings=candidate.student)
        (alone,) = torch.autograd.grad(soft.mean(), logits)
        torch.testing.assert_close(found[1:], alone[1:])
        assert not torch.allclose(found[0], alone[0])
    plain = bank_of(SoftLabels, teacher, dataset, load_images(dataset, "cpu"), Store(tmp_path / "store"))
    assert plain._key(0) != bank._key(0)
