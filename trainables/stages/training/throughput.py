"""Measure the throughput of a student's training steps: `sweeps.planning.packing` runs one process for each trial.

python -m trainables.stages.training.throughput FOLDER NUMBER     reads FOLDER/task.json, answers in FOLDER/NUMBER.json

The process prepares (data, model, first steps), touches FOLDER/NUMBER.ready and trains from the moment FOLDER/go
appears until FOLDER/stop does, so that all processes of a folder compute at the same time. It ends when its standard
input closes: a caller that is killed writes no FOLDER/stop.
"""

import os
import sys
import time
from pathlib import Path

import torch

from trainables.config.candidate import Candidate, CandidateConfig
from trainables.files import write_text
from trainables.layout import TASK
from trainables.locks import end_with_caller
from trainables.records.encoding import decode, read_json, to_json
from trainables.records.probe import Probed, ProbeTask
from trainables.stages.data import prepared
from trainables.stages.data.on_device import Images, load_images
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.models.devices import accelerator
from trainables.stages.models.devices.gpu import read_used_bytes
from trainables.stages.models.inspection import OUT_OF_MEMORY
from trainables.stages.training.lessons import LogitsAtHand
from trainables.stages.training.loop import EVAL_BATCH, Trainer
from trainables.stages.training.soft_labels import FILL_BATCH, logits_of
from trainables.stages.training.student import student_loop

STEPS = 8  # of one pass; the process checks for FOLDER/stop between passes
OUT_OF_MEMORY_CODE = 3  # exit code
POLL_S = 0.01
WAIT_S = 600.0


def few_of(candidate: Candidate, images: Images, steps: int) -> Images:
    """Enough training images for `steps` steps and one teacher batch, and one batch of validation images."""
    count = min(len(images.train_labels), max(steps * candidate.training.batch_size, FILL_BATCH))
    return images.take_first(count, EVAL_BATCH)


class TrialSteps:
    """A student's training steps as a trial takes them, without a last epoch."""

    def __init__(self, candidate: Candidate, images: Images) -> None:
        self._candidate, self._images = candidate, images
        self._lesson = LogitsAtHand(candidate.student, images, label_smoothing=candidate.training.label_smoothing)
        model = build_model(candidate.network, num_classes=images.num_classes, image_size=self._size)
        self.trainer = Trainer(model, student_loop(candidate, more_epochs=10**9), images, self._lesson)

    @property
    def _size(self) -> int:
        return self._images.image_size

    def fill_bank(self) -> None:
        """Compute the teacher's logits, as the first trial that needs a view does: its memory holds the teacher too.

        The teacher is untrained, which costs the same.
        """
        images, candidate = self._images, self._candidate
        name = candidate.teacher.teacher_model
        network = build_model(name, num_classes=images.num_classes, image_size=self._size).eval()
        placement.move(network, images.mean.device, image_size=self._size)
        self._lesson.logits_NC = logits_of(network, images, candidate.augment, candidate.training, view=0)

    def warm_up(self, epoch: int) -> None:
        """Do everything that an epoch of a trial does, once."""
        if self._candidate.student.soft_weight > 0:
            self.fill_bank()
        self.trainer.epoch(epoch)


def main(folder: Path, number: str) -> int:
    """Run one probe; return the exit code: 0, or 3 if there was not enough memory."""
    task = decode(ProbeTask, read_json(folder / TASK), where=folder / TASK)
    try:
        probed = _probe(task, folder, number)
    except OUT_OF_MEMORY:
        return OUT_OF_MEMORY_CODE
    except RuntimeError as error:  # messages of the driver, cuBLAS and cuDNN
        if not any(words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")):
            raise
        return OUT_OF_MEMORY_CODE
    write_text(folder / f"{number}.json", to_json(probed))
    return 0


def _probe(task: ProbeTask, folder: Path, number: str) -> Probed:
    # before this process has a context there
    others = (read_used_bytes() or 0) if task.device != accelerator.CPU else 0
    device, there = task.device, accelerator.find_device(task.device)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task.cores)
    placement.set_up_process(device, threads=task.threads, memory_share=task.memory_share)
    config = CandidateConfig().replace(**task.config)
    dataset = prepared.prepare(config.data, task.data_dir)
    candidate = config.resolve(dataset, device=device)
    images = few_of(candidate, load_images(dataset, device), STEPS)
    steps = TrialSteps(candidate, images)
    steps.warm_up(1)  # kernels, caches, and the memory of a view's soft labels and of a validation
    if accelerator.is_gpu(there):  # exclude the memory that cuDNN used to try its algorithms
        accelerator.forget_peak(there)
        steps.warm_up(2)
    (folder / f"{number}.ready").touch()
    _wait_for(folder / "go")
    passes = 2
    done, started = 0, time.perf_counter()
    while not done or not (folder / "stop").exists():
        passes += 1
        steps.trainer.learn(passes)
        done += len(images.train_labels)
    seconds = time.perf_counter() - started
    peak, whole = _memory(there, others)
    return Probed(images=done, seconds=seconds, peak_bytes=peak, device_bytes=whole, others_bytes=others)


def _wait_for(path: Path) -> None:
    until = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path.name} did not appear within {WAIT_S:.0f} s.")
        time.sleep(POLL_S)


def _memory(device: torch.device, others: int) -> tuple[int, int]:
    """(peak of this process, total of the device), in bytes; `others` had so many when it began."""
    peak, (free, total) = accelerator.peak_bytes(device, kept=True), accelerator.memory_info(device)
    # context and libraries use memory that PyTorch's allocator does not count
    besides = max(0, total - free - accelerator.reserved_bytes(device) - others)
    return peak + besides, total


if __name__ == "__main__":
    end_with_caller()
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
