# ruff: noqa: E402  # the clock starts before the imports, which take seconds
"""The sweep of kd_prune.py as a good engineer writes it from the documentation of Ray Tune, Optuna and MLflow.

    python tests/benchmarks/plain_tune.py --preset quick --dataset cifar10 --train-limit 5000 --trials 30 --out plain

Function trainable, DataLoader over images in memory, one teacher trained up front whose weights every trial loads and
runs on every batch, OptunaSearch, ASHA, MLflowLoggerCallback. Same flags, data, split, epochs in all and score as
kd_prune.py; the recipe is its own: a small student, AdamW at a constant rate, one epoch of six after the cut, no INT8.
OUT/points.csv gets one row for every finished trial, wall seconds since this process began.
"""

import time

START = time.time()

import copy
import csv
import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import ray
import torch
import torch.nn.functional as F
import torch_pruning
from mlflow import MlflowClient
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sweeps.search import space as spaces
from sweeps.search.config import SweepConfig
from sweeps.search.presets import PRESETS, augment_for
from trainables.config.candidate import AugmentConfig, CandidateConfig
from trainables.config.flags import OneLineParser, add_config_flags, config_from_flags, flag_name
from trainables.config.score import ExchangeRates, composite_score
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared
from trainables.stages.models.build import build_model

MEASURED = (
    "val_accuracy",
    "latency_p50_ms",
    "reference_latency_p50_ms",
    "latency_ratio",
    "size_bytes",
    "size_ratio",
    "score",
)
EVAL_BATCH = 512
RECOVERY_SHARE = 6  # one epoch of six follows the cut
DECAY = 0.01  # AdamW's default
# The space that the script was written with; constant rates, no settings of papers first.
SPACE = {
    "temperature": "1:8",
    "alpha": "0:1",
    "learning_rate": "3e-4,1e-3,3e-3",
    "pruning_method": "l1_unstructured,structured",
    "pruning_ratio": "0:0.7",
}
SEARCHED = tuple(SPACE)
COLUMNS = ("wall_s", "trial", *MEASURED, *SEARCHED, "file")
GRACE_SHARE = 0.25
Lesson = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What all trials have in common."""

    config: CandidateConfig
    dataset: DatasetRecord
    rates: ExchangeRates
    device: str
    workers: int
    """DataLoader workers a trial."""
    folder: Path
    """Holds teacher.pt and teacher.onnx."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """An ImageFolder whose pictures are already decoded and in memory."""

    def __init__(self, images_N3HW: np.ndarray, labels_N: np.ndarray, transform: Callable[[Tensor], Tensor]) -> None:
        self._images, self._labels = torch.from_numpy(images_N3HW), labels_N.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


class Split:
    """The training loader, and the validation split as tensors that are ready to be used."""

    def __init__(self, task: Task, arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        dataset, batch_size = task.dataset, task.config.training.batch_size
        # Classic transforms on uint8 tensors: 70 us an image; on PIL images 139 us, transforms.v2 129 us (one thread).
        steps: list[Any] = [
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(dataset.mean, dataset.std),
        ]
        self.train = DataLoader(
            Pictures(*arrays["train"], transforms.Compose([*_augmentation(task.config.augment, dataset), *steps])),
            batch_size=batch_size,
            shuffle=True,
            drop_last=dataset.num_train % batch_size == 1,
            num_workers=task.workers,
            persistent_workers=task.workers > 0,
            pin_memory=task.device == "cuda",
        )
        images, labels = arrays["val"]
        self.val_images = transforms.Compose(steps)(torch.from_numpy(images)).to(task.device)
        self.val_labels = torch.from_numpy(labels).to(task.device)


def _check(augment: AugmentConfig) -> None:
    if augment.crop == "resized" or augment.randaugment_magnitude is not None or augment.mixup_alpha is not None:
        raise ValueError(
            "--crop resized, --randaugment-magnitude and --mixup-alpha: the plain script has none of them."
        )


def _augmentation(augment: AugmentConfig, dataset: DatasetRecord) -> list[Any]:
    crop = [transforms.RandomCrop(dataset.image_size, padding=augment.crop_padding)] if augment.crop == "padded" else []
    return [*crop, *([transforms.RandomHorizontalFlip()] if augment.flip else [])]


def optimizer_of(name: str, model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=learning_rate, weight_decay=weight_decay, momentum=0.9, nesterov=True
        )
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)


def fit(
    model: nn.Module, split: Split, lesson: Lesson, task: Task, *, epochs: int, optimizer: torch.optim.Optimizer
) -> Iterator[float]:
    """Train in place; yields the validation accuracy after every epoch."""
    for _ in range(epochs):
        model.train()
        for images, labels in split.train:
            images, labels = images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)
            loss = lesson(images, model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        yield accuracy(model, split)


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 on the validation split, 0 to 1."""
    model.eval()
    batches = zip(split.val_images.split(EVAL_BATCH), split.val_labels.split(EVAL_BATCH), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(split.val_labels)


def distillation(teacher: nn.Module, *, temperature: float, alpha: float, label_smoothing: float) -> Lesson:
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student); the teacher runs on every batch if alpha > 0."""

    def lesson(images: Tensor, logits_BC: Tensor, labels: Tensor) -> Tensor:
        hard = F.cross_entropy(logits_BC, labels, label_smoothing=label_smoothing)
        if alpha == 0:
            return hard
        with torch.no_grad():
            teacher_BC = F.log_softmax(teacher(images) / temperature, dim=1)
        student_BC = F.log_softmax(logits_BC / temperature, dim=1)
        soft = F.kl_div(student_BC, teacher_BC, reduction="batchmean", log_target=True)
        return (1 - alpha) * hard + alpha * temperature**2 * soft

    return lesson


def remove_channels(model: nn.Module, ratio: float, image_size: int, device: str) -> None:
    """Torch-Pruning as its README does it."""
    output = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    torch_pruning.pruner.MagnitudePruner(
        model,
        torch.rand(1, 3, image_size, image_size, device=device),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[output],
        round_to=8,
    ).step()


class Normalised(nn.Module):
    """The network behind its normalisation: pixels in [0, 1] to logits."""

    def __init__(self, model: nn.Module, dataset: DatasetRecord) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(dataset.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(dataset.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.model((image - self.mean) / self.std)


def export(model: nn.Module, task: Task, path: Path) -> int:
    """Write the ONNX file, weights inside; returns its bytes."""
    size = task.dataset.image_size
    program = torch.onnx.export(
        Normalised(copy.deepcopy(model).cpu(), task.dataset).eval(),
        (torch.rand(2, 3, size, size),),
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=task.config.export.opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    proto = program.model_proto
    # The exporter's stack traces are up to 15 % of a small file: no script shall win by them.
    del proto.graph.value_info[:]
    for part in (proto, proto.graph, *proto.graph.node):
        del part.metadata_props[:]
    onnx.save(proto, path)
    return path.stat().st_size


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def file_accuracy(path: Path, images_u8: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of the exported file, 0 to 1."""
    session, correct = open_session(path, 1), 0
    for start in range(0, len(labels), EVAL_BATCH):
        images = images_u8[start : start + EVAL_BATCH].astype(np.float32) / 255
        correct += int((session.run(None, {"image": images})[0].argmax(1) == labels[start : start + EVAL_BATCH]).sum())
    return correct / len(labels)


def p50_ms(path: Path, task: Task) -> float:
    """Median latency of one image."""
    session = open_session(path, task.config.measure.latency_threads)
    size = task.dataset.image_size
    feed = {"image": np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)}
    for _ in range(20):
        session.run(None, feed)
    times: list[float] = []
    deadline = time.perf_counter() + task.config.measure.latency_seconds / 2  # the teacher's file takes the other half
    while time.perf_counter() < deadline or len(times) < 20:
        before = time.perf_counter()
        session.run(None, feed)
        times.append(1000 * (time.perf_counter() - before))
    return float(np.median(times))


def train_teacher(task: Task, arrays: dict[str, tuple[np.ndarray, np.ndarray]], threads: int) -> None:
    """Train the teacher with labels alone; leaves teacher.pt and teacher.onnx."""
    settings = task.config.teacher
    torch.set_num_threads(threads)
    torch.manual_seed(task.config.training.seed)
    model = _build(settings.teacher_model, task, pretrained=settings.pretrained)
    smoothing = task.config.training.label_smoothing

    def lesson(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    rate, decay = settings.teacher_learning_rate, settings.teacher_weight_decay
    optimizer = optimizer_of(settings.teacher_optimizer, model, rate, decay)
    curve = fit(model, Split(task, arrays), lesson, task, epochs=settings.teacher_epochs, optimizer=optimizer)
    for epoch, value in enumerate(curve, start=1):
        print(f"teacher {epoch}/{settings.teacher_epochs}  val {100 * value:.2f} %", flush=True)
    torch.save(model.state_dict(), task.folder / "teacher.pt")
    export(model, task, task.folder / "teacher.onnx")


def _build(name: str, task: Task, *, pretrained: bool) -> nn.Module:
    classes, size = task.dataset.num_classes, task.dataset.image_size
    return build_model(name, num_classes=classes, image_size=size, pretrained=pretrained).to(task.device)


def trial(params: dict[str, Any], *, task: Task, arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """One trial: distil, prune, recover, export, measure."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.set_flush_denormal(True)  # pruned weights decay into denormals, which are slow
    config = task.config.replace(**params)
    torch.manual_seed(config.training.seed)
    teacher = _build(config.teacher.teacher_model, task, pretrained=False)
    teacher.load_state_dict(torch.load(task.folder / "teacher.pt", weights_only=True, map_location=task.device))
    teacher.eval()
    student = _build(config.student.student_model, task, pretrained=config.student.student_pretrained)
    split = Split(task, arrays)
    smoothing = config.training.label_smoothing
    lesson = distillation(
        teacher, temperature=config.student.temperature, alpha=config.student.alpha, label_smoothing=smoothing
    )
    rate, pruning = config.student.learning_rate, config.prune
    epochs = config.student.student_epochs + pruning.recovery_epochs
    recovery = max(1, epochs // RECOVERY_SHARE)
    decay = DECAY
    optimizer = optimizer_of("adamw", student, rate, decay)
    for value in fit(student, split, lesson, task, epochs=epochs - recovery, optimizer=optimizer):
        tune.report({"val_accuracy": value, "score": 100 * value})

    masked = [layer for layer in student.modules() if isinstance(layer, nn.Conv2d)]
    zeroes = pruning.pruning_method == "l1_unstructured" and pruning.pruning_ratio > 0
    if zeroes:
        for layer in masked:
            torch_prune.l1_unstructured(layer, "weight", amount=pruning.pruning_ratio)
    elif pruning.pruning_ratio > 0:
        student.eval()
        remove_channels(student, pruning.pruning_ratio, task.dataset.image_size, task.device)
    optimizer = optimizer_of("adamw", student, rate, decay)
    for value in fit(student, split, lesson, task, epochs=recovery, optimizer=optimizer):
        tune.report({"val_accuracy": value, "score": 100 * value})
    if zeroes:
        for layer in masked:
            torch_prune.remove(layer, "weight")

    context = tune.get_context()
    file = Path(context.get_trial_dir()) / "model.onnx"
    size_bytes, teacher_bytes = export(student, task, file), (task.folder / "teacher.onnx").stat().st_size
    measured = {
        "val_accuracy": file_accuracy(file, *arrays["val"]),
        "latency_p50_ms": p50_ms(file, task),
        "reference_latency_p50_ms": p50_ms(task.folder / "teacher.onnx", task),
        "size_bytes": size_bytes,
        "size_ratio": size_bytes / teacher_bytes,
    }
    measured["latency_ratio"] = measured["latency_p50_ms"] / measured["reference_latency_p50_ms"]
    score = composite_score(measured, teacher_size_bytes=teacher_bytes, rates=task.rates)
    kept = shutil.copyfile(file, task.folder / f"{context.get_trial_id()}.onnx")  # Tune's folders are MLflow's to copy
    tune.report(measured | {"score": score, "file": kept.name})


class Points(tune.Callback):
    """Appends a row for every finished trial."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if "latency_p50_ms" not in result:
            return
        known = {"wall_s": round(time.time() - START, 3), "trial": trial.trial_id, **trial.config, **result}
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow([known[name] for name in COLUMNS])


def run(config: SweepConfig, dataset: DatasetRecord, workers: int, max_seconds: float | None) -> bool:
    """Teacher, then the sweep; False if it was interrupted."""
    search, devices, out = config.search, config.devices, config.places.out.resolve()
    arrays = {split: tuple(np.array(array) for array in prepared.load(dataset, split)) for split in ("train", "val")}
    device = "cuda" if devices.gpus else "cpu"
    task = Task(config=search.base, dataset=dataset, rates=config.rates, device=device, workers=workers, folder=out)
    train_teacher(task, arrays, devices.cpus)
    cores, gpus = devices.cpus, devices.gpus
    ray.init(address="local", num_cpus=cores, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    epochs = search.base.student.student_epochs + search.base.prune.recovery_epochs
    tracking_uri = f"sqlite:///{out / 'mlflow.db'}"
    MlflowClient(tracking_uri).create_experiment("plain", artifact_location=(out / "artifacts").as_uri())
    searcher = OptunaSearch(
        space=dict(search.space),
        metric="score",
        mode="max",
        seed=search.search_seed,
    )
    left = None if max_seconds is None else max(1.0, max_seconds - (time.time() - START))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, task=task, arrays=arrays), devices.resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=ASHAScheduler(
                metric="val_accuracy",
                mode="max",
                max_t=epochs + 1,  # the last report is the measurement
                grace_period=max(1, round(GRACE_SHARE * epochs)),
            ),
            num_samples=search.trials,
            max_concurrent_trials=devices.concurrency,
            time_budget_s=left,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(out / "tune"),
            verbose=1,
            callbacks=[
                Points(out / "points.csv"),
                MLflowLoggerCallback(tracking_uri=tracking_uri, experiment_name="plain", save_artifact=True),
            ],
        ),
    )
    results = tuner.fit()
    write_ends(results, epochs + 1, out / "ends.json")
    ended = sum(bool(result.metrics and result.metrics.get("done")) or result.error is not None for result in results)
    wall = time.time() - START
    print(f"{len(results)} trials, {results.num_errors} failed, {wall:.1f} s with the teacher: {out / 'points.csv'}")
    return ended >= search.trials or (max_seconds is not None and wall >= max_seconds)


def write_ends(results: tune.ResultGrid, last: int, path: Path) -> None:
    """How many trials ended how, in the words of kd_prune.py's records."""
    iterations = [(result.metrics or {}).get("training_iteration", 0) for result in results if result.error is None]
    finished = sum(iteration >= last for iteration in iterations)
    ends = {"finished": finished, "stopped": len(iterations) - finished, "failed": results.num_errors}
    path.write_text(json.dumps({how: count for how, count in ends.items() if count}))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    parser, flags = parsed(words)
    try:
        config = sweep_config(flags)
        _check(config.search.base.augment)
        if config.places.out.exists() and any(config.places.out.iterdir()):
            raise ValueError(f"--out {config.places.out}: holds files already; name a fresh folder.")
        dataset = prepared.prepare(config.search.base.data, config.places.data_dir)
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        config.places.out.mkdir(parents=True, exist_ok=True)
        return 0 if run(config, dataset, flags.workers, flags.max_seconds) else 130
    except KeyboardInterrupt:
        return 130


def parsed(words: list[str], *, lenient: bool = False) -> tuple[OneLineParser, Any]:
    """The parser, for its errors, and what it read; `lenient` passes over flags that only kd_prune.py has."""
    first = OneLineParser(prog="plain_tune.py", add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS), default="cifar10")
    preset = PRESETS[first.parse_known_args(words)[0].preset]()
    summary = (__doc__ or "").partition("\n")[0]
    parser = OneLineParser(prog="plain_tune.py", usage="plain_tune.py [FLAGS]", description=summary)
    sweep = parser.add_argument_group("sweep", "as in kd_prune.py")
    sweep.add_argument("--preset", choices=sorted(PRESETS), default="cifar10", help="what the other flags start from")
    sweep.add_argument("--out", type=Path, default=Path("plain"), help="a fresh folder (default: plain)")
    sweep.add_argument("--data-dir", type=Path, default=preset.places.data_dir, help="downloads and decoded images")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    numbers = {"trials": preset.search.trials, "search_seed": 0, "cpus": cores, "cpus_per_trial": 1, "gpus": 0}
    for name, default in numbers.items():
        sweep.add_argument(flag_name(name), type=int, metavar="N", default=default, help=f"(default: {default})")
    sweep.add_argument("--gpus-per-trial", type=float, metavar="N", default=1.0, help="(default: 1)")
    own = parser.add_argument_group("only here")
    own.add_argument("--workers", type=int, metavar="N", default=0, help="DataLoader workers a trial (default: 0)")
    own.add_argument("--max-seconds", type=float, metavar="S", help="stop after S seconds in all (default: never)")
    searched = parser.add_argument_group("search space", "each takes one value, a list such as 1,2,4, or LOW:HIGH")
    for name in SEARCHED:
        searched.add_argument(flag_name(name), metavar="SPACE", help=f"(default: {SPACE[name]})")
    add_config_flags(parser, preset.search.base, leave_out=(*SEARCHED, *spaces.SEARCHED))
    return parser, parser.parse_known_args(words)[0] if lenient else parser.parse_args(words)


def sweep_config(flags: Any) -> SweepConfig:
    """What the flags ask for."""
    preset = PRESETS[flags.preset]()
    base = preset.search.base
    if flags.dataset not in (None, base.data.dataset) or flags.image_size is not None:
        base = dataclasses.replace(base, augment=augment_for(flags.dataset or base.data.dataset, flags.image_size))
    given = {name: getattr(flags, name) for name in SEARCHED if getattr(flags, name) is not None}
    for name in SEARCHED:
        setattr(flags, name, None)
    names = ("out", "data_dir", "trials", "search_seed", "cpus", "cpus_per_trial", "gpus", "gpus_per_trial")
    asked = {name: spaces.parse(name, text) for name, text in given.items()}
    return preset.replace(
        name="plain",
        base=config_from_flags(base, flags),
        space={name: asked.get(name, spaces.parse(name, SPACE[name])) for name in SEARCHED},
        **{name: getattr(flags, name) for name in names},
    )


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    raise SystemExit(main())
