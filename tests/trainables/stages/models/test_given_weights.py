"""Weights that a user brings: read without running anything, refused by name, found by every worker."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainables.files import digest_of
from trainables.layout import WEIGHTS
from trainables.stages.models.weights import find_weights, import_weights
from trainables.store.results import Store


def network(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("form", ["plain", "checkpoint", "module.", "_orig_mod.", "safetensors"])
def test_weights_of_every_common_form_arrive_in_the_store(form: str, tmp_path: Path, store: Store) -> None:
    theirs = network()
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    prefix = form if form.endswith(".") else ""
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "checkpoint" else state, file)
    import_weights(file, network(), store)
    found = torch.load(find_weights(digest_of(file, "teacher_weights"), store), weights_only=True)
    assert found.keys() == theirs.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in theirs.state_dict().items())


class Bomb:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path, store: Store) -> None:
    file, mark = tmp_path / "w.pt", tmp_path / "executed"
    torch.save({"weight": Bomb(mark)}, file)
    with pytest.raises(ValueError, match=r"holds more than tensors.*state_dict"):
        import_weights(file, network(), store)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", "holds more than tensors"),
        (b"", "holds more than tensors"),
        ({"accuracy": 0.5}, "holds no state_dict"),
        ([1, 2], "holds no state_dict"),
        (network(12).state_dict(), r"3.weight is \(12, 144\) there, and \(10, 144\) in the network"),
        ({name: t for name, t in network().state_dict().items() if name != "1.running_var"}, "lacks 1.running_var"),
        (network().state_dict() | {"head.bias": torch.zeros(2)}, "the network has no head.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_name_of_what_is_wrong(
    content: object, told: str, tmp_path: Path, store: Store
) -> None:
    file = tmp_path / "w.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=f"teacher_weights=.*{told}"):
        import_weights(file, network(), store)
    assert not list(tmp_path.rglob(WEIGHTS))


def test_weights_that_the_store_has_lost_are_asked_for_again(store: Store) -> None:
    with pytest.raises(ValueError, match="give --teacher-weights FILE again"):
        find_weights("0" * 16, store)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher_weights=.*w\.pt: no such file"):
        digest_of(tmp_path / "w.pt", "teacher_weights")
