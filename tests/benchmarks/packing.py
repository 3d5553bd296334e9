"""What trials that share a GPU do together: images a second and trials an hour for 1, 2, 4 and 8, with and without MPS.

    python tests/benchmarks/packing.py                             # MobileNetV3-Small at 32 px, one GPU
    python tests/benchmarks/packing.py --device cpu --trials 1 2 --seconds 2 --preset quick

Every trial is a process that trains the preset's student (soft labels at hand), as `--gpus-per-trial auto` measures it.
The last line is what auto would take, and how much less that is than the best of the table.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from sweeps.cluster.mps import MpsError, mps
from sweeps.planning.packing import ProbeError, Together, choose, search, together
from sweeps.search.config import SweepConfig
from sweeps.search.presets import PRESETS
from trainables.stages.data import prepared


def config_of(flags: argparse.Namespace) -> SweepConfig:
    """The preset on one device."""
    preset = PRESETS[flags.preset]()
    base = preset.search.base.replace(**({"train_limit": flags.train_limit} if flags.train_limit else {}))
    gpus = 1 if flags.device == "cuda" else 0
    return preset.replace(base=base, gpus=gpus, cpus=os.cpu_count() or 1, data_dir=flags.data_dir)


def images_of_a_trial(config: SweepConfig, num_train: int) -> int:
    """Training images that one trial sees in all its epochs."""
    return num_train * (config.search.base.student.student_epochs + config.search.base.prune.recovery_epochs)


def table(config: SweepConfig, flags: argparse.Namespace, images: int) -> list[Together]:
    """Measure and print a line for each number of trials."""
    measured: list[Together] = []
    for trials in flags.trials:
        one = together(config, trials, seconds=flags.seconds)
        if one is None:
            print(f"{trials:7}  not enough memory", flush=True)
            continue
        measured.append(one)
        per_hour, ratio = 3600 * one.images_per_s / images, one.images_per_s / measured[0].images_per_s
        rates = f"{one.images_per_s:12.0f}  {per_hour:12.2f}  {ratio:5.2f} x {measured[0].trials}"
        print(f"{trials:7}  {rates}  {measured[0].peak_bytes / 1e6:.0f} MB each", flush=True)
    return measured


def main(words: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cifar10")
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--train-limit", type=int, help="training images; all of them if not given")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    flags = parser.parse_args(words)
    config = config_of(flags)
    dataset = prepared.prepare(config.search.base.data, config.places.data_dir)
    images = images_of_a_trial(config, dataset.num_train)
    where = f"{torch.cuda.get_device_name()}, " if flags.device == "cuda" else ""
    print(
        f"{where}{config.search.base.student.student_model}, {dataset.image_size} px, "
        f"batch {config.search.base.training.batch_size}, {images} images a trial, {os.cpu_count()} CPU cores, "
        f"load {os.getloadavg()[0]:.2f}"
    )
    for with_mps in (False, True) if flags.device == "cuda" else (False,):
        print(f"\n{'with' if with_mps else 'without'} MPS\n trials  images/s all   trials/hour  ratio")
        try:
            with mps(with_mps):
                measured = table(config, flags, images)
                if not measured:
                    continue
                best = max(measured, key=lambda one: one.images_per_s)
                chosen = choose(found := search(lambda trials: together(config, trials), most=max(flags.trials)))
                auto = next(one for one in found if one.trials == chosen)
        except (MpsError, ProbeError) as error:
            print(error)
            continue
        print(f"auto takes {chosen}: {auto.images_per_s / best.images_per_s:.2f} of the best ({best.trials} trials)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
