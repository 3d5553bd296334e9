import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
    assert sorted(file.name for file in path.parent.iterdir()) == ["state.pt.corrupt-1"]


def test_no_memory_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial runs again with the GPU to itself, from its last epoch."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        resumed(path)


def damaged(content: bytes) -> Iterator[bytes]:
    """Every way to cut it, or to overwrite or turn over a part of it, that differs from what it was."""
    rng = np.random.default_rng(0)
    for start in np.linspace(0, len(content) - 1, 60, dtype=int):
        yield content[:start]
    for start in rng.integers(0, len(content), 60):
        for part in (bytes(256), rng.bytes(4), bytes([content[start] ^ 1])):
            yield content[:start] + part[: len(content) - start] + content[start + len(part) :]
    yield from (b"PK", bytes(len(content)), content + content, content[100:], pickle.dumps({"model": 1}))


def test_no_damage_stops_a_stage_or_is_taken_for_weights(path: Path) -> None:
    content, right = path.read_bytes(), resumed(path).weight
    fresh = nn.Linear(2, 2)
    before, again = fresh.weight.clone(), 0
    for harmed in damaged(content):
        path.write_bytes(harmed)
        fresh.load_state_dict({"weight": before, "bias": fresh.bias})
        checkpoints.resume(fresh, torch.optim.AdamW(fresh.parameters()), path, CPU)
        assert torch.equal(fresh.weight, right) or torch.equal(fresh.weight, before)
        again += torch.equal(fresh.weight, before)
    assert again > 150
    assert not path.exists() or resumed(path)


@pytest.mark.parametrize("state", [{}, [1], {"model": {}, "optimizer": {}, "curve": "[]"}, {"curve": "["}])
def test_a_whole_file_that_is_no_state_begins_again(path: Path, state: object) -> None:
    torch.save(state, path)
    assert resumed(path).weight.shape == (2, 2)
    assert not path.exists()


def test_the_state_of_another_network_begins_again(path: Path) -> None:
    other = nn.Linear(3, 2)
    checkpoints.save(other, torch.optim.AdamW(other.parameters()), [], path)
    assert resumed(path).weight.shape == (2, 2)
    assert not path.exists()
