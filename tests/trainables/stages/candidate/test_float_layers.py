"""INT8 files of networks with layers that integers cannot hold: they are found, kept in float and named."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from trainables.config.candidate import CandidateConfig
from trainables.files import sha256
from trainables.layout import ONNX_FILE
from trainables.records.stages import CandidateRecord
from trainables.stages.candidate.chain import make_candidate
from trainables.stages.export import onnx_files
from trainables.stages.export.convert import quantize_int8
from trainables.stages.export.scheme import scheme_for
from trainables.stages.export.stage import calibration_pixels
from trainables.stages.workspace import Workspace
from trainables.store.results import Store, stage_key

# Digits are grey, so `planted` adds nothing to any output; but the rest of each kernel is far below its scale in INT8.
NETS = """
import torch
from torch import nn

def plain(*, num_classes):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(128, num_classes))

def planted(*, num_classes):
    net = plain(num_classes=num_classes)
    with torch.no_grad():
        net[0].weight[:, 0] += 100
        net[0].weight[:, 1] -= 100
    return net
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    root = tmp_path_factory.mktemp("float_layers")
    (root / "int8_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        place = Workspace(
            store=Store(root / "store"),
            data=config().data,
            data_dir=root / "data",
            device="cpu",
            threads=1,
            lock_dir=root / "locks",
        )
        place.enter()
        yield place


def config(net: str = "plain", **changes: object) -> CandidateConfig:
    """The trained network itself, nothing removed, in INT8."""
    return CandidateConfig().replace(
        **{"dataset": "digits", "flip": False, "batch_size": 32, "latency_seconds": 0.1, "latency_max_attempts": 1}
        | {"teacher_model": f"int8_nets:{net}", "teacher_epochs": 6, "teacher_learning_rate": 4e-3}
        | {"student_model": "teacher", "pruning_ratio": 0.0, "precision": "int8_ptq"}
        | changes
    )


def made(place: Workspace, settings: CandidateConfig) -> CandidateRecord:
    steps = make_candidate(settings.resolve(place.dataset(), device="cpu"), place)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_x(place):
    for net in ("plain", "planted"):
        for p in ({"precision": "fp32"}, {"int8_tolerance": 1.0}, {}):
            r = made(place, config(net, **p))
            print(net, p, r.measurement.val_accuracy, r.num_val, r.export.parity_agreement, r.export.key, r.export.kept_in_float, r.tags())
