"""Training images a second: the ordinary notebook loop, the same with AMP and 8 workers, and ours.

    python tests/benchmarks/train_throughput.py                                     # on the GPU, if there is one
    python tests/benchmarks/train_throughput.py --device cpu --steps 20 --batch-size 64

Needs torch and torchvision (and what those need) and the files of this repository, nothing else. Random uint8 images in
memory, so nobody pays for decoding. Every measurement is a process of its own; arms take turns.

notebook      (a) DataLoader with 2 workers, torchvision's CPU transforms, fp32, live teacher for distillation
notebook-amp  (b) the same with bfloat16 autocast and 8 workers, pinned memory
ours          (c) the training stages: bfloat16 on a GPU, fp32 on a CPU; soft labels found, as in most trials
ours-first    the same in the trial that fills the bank of soft labels
ours-compile  on a GPU, the same as ours with --compile: CUDA graphs; compiling is not counted
ours-amp      on a CPU, the same as ours with --train-precision amp
bare          ResNet-18 at 32 px: bfloat16, channels_last, AdamW, on one batch that is on the device already
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository need not be installed

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord, ModelRecord, read_model
from trainables.stages.data.on_device import Images, place
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.models.stored import write_model
from trainables.stages.training.lessons import Distillation, Labels
from trainables.stages.training.loop import Lesson, Loop, Trainer
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Key, Store

CLASSES = 10
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
TEACHER = "resnet18"
TASKS = {"resnet18": False, "mobilenet_v3_small": True, "alexnet": True}
"""Model, and whether it is distilled."""
TEMPERATURE, ALPHA = 4.0, 0.9
WARMUP_STEPS = 5
MOST_IMAGES = 16384
"""2.5 GB at 224 pixels."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """What a notebook trains on: PIL images through torchvision's transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        crop = transforms.RandomResizedCrop(size) if size >= 128 else transforms.RandomCrop(size, padding=4)
        steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self._transform = transforms.Compose(steps)
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def notebook(flags: argparse.Namespace, *, amp: bool, workers: int) -> float:
    """Images a second of the loop that everybody writes."""
    images, labels = pictures(flags)
    device = torch.device(flags.device)
    loader = DataLoader(
        Pictures(images.transpose(0, 2, 3, 1).copy(), labels, flags.size),
        batch_size=flags.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=amp and flags.device == "cuda",
    )
    model = build_model(flags.model, num_classes=CLASSES, image_size=flags.size).to(device).train()
    teacher = build_model(TEACHER, num_classes=CLASSES, image_size=flags.size).to(device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    batches = endless(loader)
    running_loss = 0.0

    def step() -> None:
        nonlocal running_loss
        pixels, target = (tensor.to(device, non_blocking=amp) for tensor in next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(pixels)
            loss = F.cross_entropy(logits, target)
            if TASKS[flags.model]:
                with torch.no_grad():
                    soft = F.softmax(teacher(pixels) / TEMPERATURE, dim=1)
                divergence = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), soft, reduction="batchmean")
                loss = (1 - ALPHA) * loss + ALPHA * TEMPERATURE**2 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running_loss += loss.item()

    # as many steps more as the workers have batches ready: they cost nothing while they are counted
    return rate(flags, step, WARMUP_STEPS + 2 * workers)


def bare(flags: argparse.Namespace) -> float:
    """Images a second without any data: what the device can do with this model."""
    device = torch.device(flags.device)
    torch.backends.cudnn.benchmark = True
    model = build_model(flags.model, num_classes=CLASSES, image_size=flags.size).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    pixels = torch.randn(flags.batch_size, 3, flags.size, flags.size, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, CLASSES, (flags.batch_size,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(pixels), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return rate(flags, step, WARMUP_STEPS)


def ours(flags: argparse.Namespace, *, first: bool = False, **settings: Any) -> float:
    """Images a second of the training stage's own passes; `first` counts filling the bank of soft labels too.

    Args:
        settings: of `TrainingConfig`.
    """
    placement.set_up_process(flags.device, threads=os.cpu_count() or 1)
    pixels, classes = pictures(flags)
    images = Images(
        train_images=place(torch.from_numpy(pixels), flags.device),
        train_labels=torch.from_numpy(classes).to(flags.device),
        val_images=torch.empty(0, 3, flags.size, flags.size),
        val_labels=torch.empty(0),
        mean=torch.tensor(MEAN, device=flags.device).view(1, 3, 1, 1),
        std=torch.tensor(STD, device=flags.device).view(1, 3, 1, 1),
        num_classes=CLASSES,
    )
    model = build_model(flags.model, num_classes=CLASSES, image_size=flags.size)
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_of(flags, images, Path(folder), settings)
        training, augment = bench.candidate.training, bench.candidate.augment
        loop = Loop(stage="student", epochs=10**6, learning_rate=1e-3, training=training, augment=augment)
        lesson: Lesson = Distillation.of(bench, teacher_of(bench), loop) if TASKS[flags.model] else Labels(0.0)
        trainer = Trainer(model, loop, images, lesson)
        trainer.learn(1)
        seconds = []
        for epoch in (2, 3):
            if not first:
                lesson.open(epoch - 1, nullcontext)
            wait(flags)
            started = time.perf_counter()
            trainer.learn(epoch)
            wait(flags)
            seconds.append(time.perf_counter() - started)
    return len(classes) * len(seconds) / sum(seconds)


def bench_of(flags: argparse.Namespace, images: Images, folder: Path, settings: Mapping[str, Any]) -> Bench:
    """The bench of the candidate that is trained, on random images and with a store of its own."""
    dataset = DatasetRecord(
        name="random",
        folder=folder,
        fingerprint="random",
        class_names=tuple(map(str, range(CLASSES))),
        image_size=flags.size,
        num_train=len(images.train_labels),
        num_val=0,
        num_test=0,
        mean=MEAN,
        std=STD,
    )
    config = CandidateConfig().replace(
        temperature=TEMPERATURE,
        alpha=ALPHA,
        label_smoothing=0.0,
        batch_size=flags.batch_size,
        crop="resized" if flags.size >= 128 else "padded",
        **settings,
    )
    workspace = Workspace(
        store=Store(folder / "store"),
        data=config.data,
        data_dir=folder,
        device=flags.device,
        threads=os.cpu_count() or 1,
        lock_dir=folder / "leases",
    )
    candidate = config.resolve(dataset, device=flags.device)
    return Bench(candidate=candidate, dataset=dataset, images=images, place=workspace)


def teacher_of(bench: Bench) -> ModelRecord:
    """An untrained teacher: its accuracy does not change what its soft labels cost."""
    network = build_model(TEACHER, num_classes=CLASSES, image_size=bench.dataset.image_size)
    folder = bench.dataset.folder / "teacher"
    folder.mkdir()
    write_model(network, folder, key=Key("teacher", "0" * 24), name=TEACHER, dataset=bench.dataset, curve=())
    return read_model(folder, TEACHER)


ARMS: dict[str, Callable[[argparse.Namespace], float]] = {
    "notebook": lambda flags: notebook(flags, amp=False, workers=2),
    "notebook-amp": lambda flags: notebook(flags, amp=True, workers=8),
    "ours": ours,
    "ours-first": lambda flags: ours(flags, first=True),
    "ours-compile": lambda flags: ours(flags, compile=True),
    "ours-amp": lambda flags: ours(flags, train_precision="amp"),
    "bare": bare,
}


def arms_of(flags: argparse.Namespace, model: str, size: int) -> list[str]:
    """Which arms make sense for a task."""
    left_out = set()
    if not TASKS[model]:
        left_out.add("ours-first")
    left_out.add("ours-amp" if flags.device == "cuda" else "ours-compile")
    if (model, size) != ("resnet18", 32):
        left_out.add("bare")
    return [arm for arm in ARMS if arm not in left_out and (not flags.arms or arm in flags.arms)]


def pictures(flags: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Random images, uint8 [N, 3, H, W], and labels: `--steps` batches of them, if that is not too many."""
    rng = np.random.default_rng(0)
    count = min(flags.steps * flags.batch_size, MOST_IMAGES)
    shape = (count, 3, flags.size, flags.size)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, CLASSES, count)


def endless(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def rate(flags: Any, step: Callable[[], None], warmup: int) -> float:
    """Images/s of one network, from the `steps`, `batch_size` and `device` of `flags`."""
    for _ in range(warmup):
        step()
    wait(flags)
    started = time.perf_counter()
    for _ in range(flags.steps):
        step()
    wait(flags)
    return flags.steps * flags.batch_size / (time.perf_counter() - started)


def wait(flags: Any) -> None:
    if flags.device == "cuda":
        torch.cuda.synchronize()


def hardware(device: str) -> str:
    what = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{what}, {os.cpu_count()} CPU cores, load {load:.2f}, torch {torch.__version__},"
        f" torchvision {torchvision.__version__}"
    )


def measured(flags: argparse.Namespace, arm: str, model: str, size: int) -> float:
    """One process, one number.

    Raises:
        RuntimeError: if the process fails; its last line.
    """
    asked = {"batch_size": flags.batch_size, "steps": flags.steps, "device": flags.device, "size": size, "model": model}
    command = [sys.executable, __file__, "--run", arm, json.dumps(asked)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1])
    return float(result.stdout.strip().splitlines()[-1])


def main(words: list[str]) -> int:
    """The command line."""
    if words[:1] == ["--run"]:
        print(ARMS[words[1]](argparse.Namespace(**json.loads(words[2]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--models", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 224], help="pixels of a side")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=[])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="counted, of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args(words)
    print(hardware(flags.device))
    print(
        f"batch {flags.batch_size}, {flags.steps} steps, {flags.repeats} processes an arm: median (lowest to highest)"
    )
    for size in flags.sizes:
        for model in flags.models:
            compare(flags, model, size)
    return 0


def compare(flags: argparse.Namespace, model: str, size: int) -> None:
    """Print one task's table."""
    arms = arms_of(flags, model, size)
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    failed: dict[str, str] = {}
    for repeat in range(flags.repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            try:
                if arm not in failed:
                    rates[arm].append(measured(flags, arm, model, size))
            except RuntimeError as error:  # no compiler, too little memory: the other arms have their figures
                failed[arm] = str(error)
    task = f"{model} {'taught by ' + TEACHER if TASKS[model] else 'alone'}, {size} px"
    middle = {arm: statistics.median(values) for arm, values in rates.items() if arm not in failed}
    for arm, reason in failed.items():
        print(f"{task:45} {arm:13} failed: {reason}", flush=True)
    for arm in middle:
        values = rates[arm]
        ratios = [
            f"{middle[arm] / middle[of]:6.2f} x {of}" for of in ("notebook", "notebook-amp", "bare") if of in middle
        ]
        spread = f"({min(values):.0f} to {max(values):.0f})"
        print(f"{task:45} {arm:13} {middle[arm]:9.0f} images/s {spread:18} {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
