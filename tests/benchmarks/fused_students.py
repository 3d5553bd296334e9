"""Images a second of students of one architecture: as many in one process, fused, or each in a process of its own.

    python tests/benchmarks/fused_students.py                                   # alexnet_small and resnet8; 1, 2 and 4
    python tests/benchmarks/fused_students.py --students resnet8 --counts 1 2

Fused students are one network in `torch.func.stack_module_state`'s form: every weight has a first axis of students, and
`vmap` runs all in each kernel. Both arms train the same steps (forward, cross-entropy, backward, AdamW) in fp32, each
student on random images of its own. All processes together have the same cores. One JSON object on a line.
"""

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the repository need not be installed

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from trainables.stages.models.build import build_model  # noqa: E402

CLASSES, SIZE = 10, 32
WARM = 2  # steps


def make_students(name: str, count: int) -> list[nn.Module]:
    """Networks with weights of their own, whose BatchNorm uses each batch's statistics and keeps none."""
    torch.manual_seed(0)
    students = [build_model(name, num_classes=CLASSES, image_size=SIZE).train() for _ in range(count)]
    for layer in (layer for student in students for layer in student.modules()):
        if isinstance(layer, nn.BatchNorm2d):  # vmap cannot update them in place
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return students


def make_batches(count: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random images [S, B, 3, H, W] and labels [S, B], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, batch, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(CLASSES, (count, batch), generator=generator)


def one_step(student: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A step of one student; each call trains it and returns its loss."""
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)

    def step() -> Tensor:
        loss = F.cross_entropy(student(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def fused_step(students: list[nn.Module], images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A step of all students at once, each on its images; each call trains them and returns their losses [S]."""
    plain = copy.deepcopy(students[0]).to("meta")
    weights, buffers = torch.func.stack_module_state(students)
    optimizer = torch.optim.AdamW(weights.values(), fused=True)

    def losses_of(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(plain, (weights, buffers), (images,)), labels)

    together = torch.func.vmap(losses_of, randomness="different")

    def step() -> Tensor:
        losses = together(weights, buffers, images, labels)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return step


def rate_of(step: Callable[[], Tensor], images: int, seconds: float) -> float:
    """Images a second; a step trains so many."""
    for _ in range(WARM):
        step()
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        step()
        done += images
    return done / passed


def work(name: str, flags: argparse.Namespace, threads: int, gate: Any, answers: Any) -> None:
    """One process with one student, which begins with all the others."""
    torch.set_num_threads(threads)
    images, labels = make_batches(1, flags.batch_size)
    step = one_step(make_students(name, 1)[0], images[0], labels[0])
    step()
    gate.wait()
    answers.put(rate_of(step, flags.batch_size, flags.seconds))


def apart(name: str, count: int, flags: argparse.Namespace) -> float:
    """Images a second of all of as many processes."""
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(count), context.SimpleQueue()
    threads = max(1, flags.threads // count)
    given = (name, flags, threads, gate, answers)
    processes = [context.Process(target=work, args=given) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(answers.get() for _ in range(count))


def check_fused(name: str) -> float:
    """The largest difference between the losses of two fused students and of the same ones alone, over three steps."""
    students, (images, labels) = make_students(name, 2), make_batches(2, 8)
    for layer in (layer for student in students for layer in student.modules()):
        if isinstance(layer, nn.Dropout):  # its random numbers are others
            layer.p = 0.0
    apart = [one_step(*given) for given in zip(copy.deepcopy(students), images, labels, strict=True)]
    together = fused_step(students, images, labels)
    return max(float((together() - torch.stack([step() for step in apart])).abs().max()) for _ in range(3))


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["alexnet_small", "resnet8"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="of every arm, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of all processes together")
    flags = parser.parse_args(words)
    torch.set_num_threads(flags.threads)
    for name in flags.students:
        print(json.dumps({"student": name, "losses_apart": check_fused(name)}), flush=True)
        for count in flags.counts:
            fused, processes = [], []
            for _ in range(flags.repeats):
                step = fused_step(make_students(name, count), *make_batches(count, flags.batch_size))
                fused.append(rate_of(step, count * flags.batch_size, flags.seconds))
                processes.append(apart(name, count, flags))
            rows = {"fused_images_per_s": fused, "processes_images_per_s": processes}
            ratio = statistics.median(fused) / statistics.median(processes)
            where = {"threads": flags.threads, "load": os.getloadavg()[0], "batch_size": flags.batch_size}
            print(json.dumps({"student": name, "count": count, **rows, "ratio": ratio, **where}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
