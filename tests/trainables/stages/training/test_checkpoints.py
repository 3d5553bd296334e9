from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.stages.training import checkpoints

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state that was written in full."""
    model = nn.Linear(2, 2)
    checkpoints.save(model, torch.optim.AdamW(model.parameters()), [], tmp_path / "state.pt")
    return tmp_path / "state.pt"


def resumed(path: Path) -> nn.Linear:
    model = nn.Linear(2, 2)
    checkpoints.resume(model, torch.optim.AdamW(model.parameters()), path, CPU)
    return model


def test_weights_come_back_and_a_damaged_file_begins_again(path: Path) -> None:
    assert torch.equal(resumed(path).weight, resumed(path).weight)
    path.write_bytes(path.read_bytes()[:200])
    assert not torch.equal(resumed(path).weight, resumed(path).weight)


def test_no_memory_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial runs again with the GPU to itself, from its last epoch."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        resumed(path)
