"""Several students of one architecture in one process, as a batch of networks: images/s against as many processes.

    python tests/benchmarks/fused.py                               # alexnet_small and resnet8, 1, 2 and 4, on the CPU
    python tests/benchmarks/fused.py --device cuda --counts 1 4 16

A step is one of distillation (cross entropy and soft labels, AdamW, batches of its own for every student) on random
images. `processes`: one process a student, the cores shared out evenly. `in turn`: one process, one student after the
other, all cores. `fused`: one process, the students' weights stacked and the step mapped over them
(`torch.func.stack_module_state`, `vmap`), which makes one grouped convolution of their convolutions. The rounds of the
three alternate; the figure is the median of their images/s over all students. Before anything is timed, two fused
students must have the gradients of the same two alone.
"""

import argparse
import copy
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from train_throughput import rate as one_rate

from trainables.stages.models.build import build_model
from trainables.stages.models.devices.processor import processor_name, usable_cores

CLASSES, SIDE, TEMPERATURE, ALPHA = 10, 32, 4.0, 0.9
WARM_UP = 2  # steps
WAYS = ("processes", "in turn", "fused")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ways train."""

    model: str
    batch_size: int
    steps: int
    device: str


def loss_of(logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor) -> Tensor:
    """Hinton's distillation loss."""
    soft = F.kl_div(
        F.log_softmax(logits_BC / TEMPERATURE, dim=1), F.softmax(teacher_BC / TEMPERATURE, dim=1), reduction="batchmean"
    )
    return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(logits_BC, labels_B)


def students(job: Job, count: int) -> list[nn.Module]:
    """Students with weights of their own."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(build_model(job.model, num_classes=CLASSES, image_size=SIDE).train().to(job.device))
    return made


def batches(job: Job, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch for every student: images (N, B, 3, S, S), labels (N, B), the teacher's logits (N, B, C)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, job.batch_size, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (count, job.batch_size), generator=generator)
    logits = torch.randn(count, job.batch_size, CLASSES, generator=generator)
    return images.to(job.device), labels.to(job.device), logits.to(job.device)


def step_in_turn(job: Job, count: int) -> Callable[[], None]:
    """A step of every student, one after the other."""
    networks, data = students(job, count), batches(job, count)
    optimizers = [torch.optim.AdamW(network.parameters(), fused=True) for network in networks]

    def step() -> None:
        for network, optimizer, images, labels, logits in zip(networks, optimizers, *data, strict=True):
            optimizer.zero_grad()
            loss_of(network(images), labels, logits).backward()
            optimizer.step()

    return step


def step_fused(job: Job, count: int) -> Callable[[], None]:
    """A step of all students at once."""
    networks, data = students(job, count), batches(job, count)
    params, buffers = stack_module_state(networks)
    gradients_of = mapped_gradients(networks[0])
    optimizer = torch.optim.AdamW(params.values(), fused=True)

    def step() -> None:
        for name, gradient in gradients_of(params, buffers, *data).items():
            params[name].grad = gradient
        optimizer.step()

    return step


def mapped_gradients(network: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """Stacked weights, buffers and batches -> stacked gradients; updates the buffers."""
    skeleton = copy.deepcopy(network).to("meta")

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], *batch: Tensor) -> Tensor:
        images, labels, logits = batch
        return loss_of(functional_call(skeleton, (params, buffers), (images,)), labels, logits)

    return vmap(grad(loss), randomness="different")


def check(job: Job) -> None:
    """Compare the gradients of two fused students with those of the same two alone, without dropout.

    Raises:
        AssertionError: if they differ.
    """
    networks, data = students(job, 2), batches(job, 2)
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    fused = mapped_gradients(networks[0])(*stack_module_state(networks), *data)
    for index, network in enumerate(networks):
        loss_of(network(data[0][index]), data[1][index], data[2][index]).backward()
        for name, weight in network.named_parameters():
            torch.testing.assert_close(fused[name][index], weight.grad, rtol=1e-3, atol=1e-4)


_together: Barrier | None = None


def join(barrier: Barrier) -> None:
    """Give a process the barrier at which all begin."""
    global _together
    _together = barrier


def rate_alone(job: Job, threads: int) -> float:
    """Images/s of one student in this process, beside the others."""
    torch.set_num_threads(threads)
    step = step_in_turn(job, 1)
    step()
    assert _together is not None
    _together.wait(timeout=300)  # of one that has failed before it
    return one_rate(job, step, WARM_UP)


def rate(way: str, job: Job, count: int, cores: int) -> float:
    """Images/s of all students together."""
    if way == "processes":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, context, initializer=join, initargs=(context.Barrier(count),)) as pool:
            running = [pool.submit(rate_alone, job, max(1, cores // count)) for _ in range(count)]
            return sum(one.result() for one in running)
    torch.set_num_threads(cores)
    step = (step_in_turn if way == "in turn" else step_fused)(job, count)
    return count * one_rate(job, step, WARM_UP)


def main(words: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["alexnet_small", "resnet8"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4], help="students at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="timed, a round")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args(words)
    cores = len(usable_cores())
    print(
        f"{processor_name()}, {cores} cores, load {os.getloadavg()[0]:.1f}, {flags.device}, Python"
        f" {platform.python_version()}, torch {torch.__version__}, batch {flags.batch_size}, {SIDE} px"
    )
    print(f"\n| network | students | {' | '.join(f'{way}, images/s (range)' for way in WAYS)} | fused by the better |")
    print("|---|---|---|---|---|---|", flush=True)
    for model in flags.models:
        job = Job(model=model, batch_size=flags.batch_size, steps=flags.steps, device=flags.device)
        check(job)
        for count in flags.counts:
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(flags.rounds):
                for way in WAYS:
                    rates[way].append(rate(way, job, count, cores))
            median = {way: statistics.median(found) for way, found in rates.items()}
            shown = [f"{median[way]:.0f} ({min(rates[way]):.0f} to {max(rates[way]):.0f})" for way in WAYS]
            gain = median["fused"] / max(median["processes"], median["in turn"])
            print(f"| {model} | {count} | {' | '.join(shown)} | {gain:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
