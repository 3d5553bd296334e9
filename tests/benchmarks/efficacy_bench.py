"""What an arm of efficacy.py is given, and what it can ask of the images and of the teacher."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import efficacy_files as files
import torch
from efficacy_training import Scale, Split, read, trained
from torch import nn

AIM = 0.95
"""Of a share: what is measured later shall still be within it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What an arm is given."""

    seed: int
    folder: Path
    """The seed's: images/train, images/val, teacher.pt, teacher.json, teacher.onnx."""
    out: Path
    budget_s: float
    """CPU-seconds of the arm and its children."""
    shares: tuple[float, ...]
    """Latencies to keep to, as shares of the teacher's, the largest first."""
    threads: int
    """Processes that train at the same time, one thread each."""
    ours: tuple[str, ...] = ()
    """More flags of kd_prune.py."""


class Bench:
    """Images and teacher in memory."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(job.seed)
        self.train, self.val = (decoded(job, part) for part in ("train", "val"))
        self.scale, self.teacher = Scale(self.train), trained(job.folder)
        self.file, self.side = job.folder / "teacher.onnx", self.train.pixels.shape[-1]

    def ship(self, model: nn.Module, stem: Path) -> list[dict[str, Any]]:
        """Points of a network's FP32 and INT8 files."""
        written = [
            files.write(model, self.scale, stem.with_name(f"{stem.name}.{name}.onnx"), self.train, int8=name == "int8")
            for name in ("fp32", "int8")
        ]
        return [{"file": str(path), "val": files.accuracy(path, self.val)} for path in written]

    def share(self, model: nn.Module, stem: Path, seconds: float = 0.4) -> float:
        """The lesser of the latencies of both files, as a share of the teacher's."""
        paths = [self.file]
        for name in ("fp32", "int8"):
            paths.append(files.write(model, self.scale, stem.with_suffix(f".{name}"), self.train, int8=name == "int8"))
        teacher, *others = files.times(paths, seconds)
        return min(others) / teacher

    def left_open(self, shares: Sequence[float], points: Sequence[dict[str, Any]]) -> list[float]:
        """Shares that no file keeps to yet."""
        teacher, *others = files.times([self.file, *(Path(point["file"]) for point in points)], 1.0)
        return [share for share in shares if min(others) > AIM * share * teacher]


def decoded(job: Job, part: str) -> Split:
    """Images of a part; an arm decodes them once."""
    kept = job.out / f"{part}.pt"
    if not kept.exists():
        split = read(job.folder / "images" / part)
        torch.save({"pixels": split.pixels, "labels": split.labels}, kept)
        return split
    return Split(**torch.load(kept, weights_only=True))
