"""A trained network that a program has in memory, as a module that every worker can import."""

import hashlib
import inspect
import io
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from trainables.files import write_bytes, write_text
from trainables.layout import CHECKOUT, COMMANDS
from trainables.records.stages import DatasetRecord
from trainables.stages.models.inspection import NOT_THE_USERS, USERS_ERRORS, describe_error
from trainables.stages.models.weights import save_weights

MODULE = '''"""Written by `compress`: a network that a program had in memory."""

from pathlib import Path

from {here} import rebuild


def model(num_classes):
    return rebuild(Path(__file__).with_suffix(".pickle"))
'''


class GivenModel(nn.Module):
    """A user's network that sees its own preprocessing: the sweep's normalisation in front of it is undone.

    Args:
        model: the network.
        seen: the images of the sweep, whose mean and standard deviation are undone.
        mean: of the user's own normalisation, of pixels in [0, 1], a number or one for each channel.
        std: likewise.
        channels: that the network takes: 3, or 1, the first of three equal ones.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, seen: DatasetRecord, *, mean: Sequence[float], std: Sequence[float], channels: int
    ) -> None:
        super().__init__()
        self.model, self.channels = model, channels
        theirs, ours = (torch.tensor([*pair], dtype=torch.float64) for pair in ((mean, std), (seen.mean, seen.std)))
        # not persistent: no weights, and the same for every network of this sweep
        self.register_buffer("scale", (ours[1] / theirs[1]).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1]).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, C) of images (B, 3, H, W) that the sweep has normalised."""
        own = image * self.scale + self.shift
        logits: Tensor = self.model(own[:, :1] if self.channels == 1 else own)
        return logits


def write_model(
    model: nn.Module, seen: DatasetRecord, folder: Path, *, mean: object, std: object, channels: int
) -> tuple[str, Path]:
    """Write a network and its weights; returns its name as `module:function`, and the file of the weights.

    Equal networks have the same name. The network itself is not changed, wherever it is.

    Raises:
        ValueError: if it cannot be pickled, or `mean` and `std` do not fit.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
    numbers = {"mean": _three("mean", mean), "std": _three("std", std)}
    with _by_value(model):
        try:
            copy = cloudpickle.loads(cloudpickle.dumps(model)).cpu()
            given = GivenModel(copy, seen, **numbers, channels=channels)
            network = cloudpickle.dumps(given)
        except USERS_ERRORS as error:
            raise ValueError(
                f"model: {type(model).__name__} cannot be pickled ({describe_error(error)}); workers are other"
                " processes. Keep files, locks and connections out of it."
            ) from error
    folder.mkdir(parents=True, exist_ok=True)
    state = io.BytesIO()
    torch.save({name: tensor.contiguous().clone() for name, tensor in given.state_dict().items()}, state)
    told = [state.getvalue(), repr(given).encode(), repr((numbers, seen.mean, seen.std)).encode(), *_sources(model)]
    name = f"given_{hashlib.sha256(b''.join(told)).hexdigest()[:12]}"
    weights = folder / f"{name}.pt"
    if not weights.exists():
        save_weights(given, weights)
    write_bytes(folder / f"{name}.pickle", network)
    write_text(folder / f"{name}.py", MODULE.format(here=__name__))
    return f"{name}:model", weights


def rebuild(path: Path) -> nn.Module:
    """The network of a file that `write_model` wrote, with new random weights where its layers can draw some."""
    model: nn.Module = cloudpickle.loads(path.read_bytes())
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model


@contextmanager
def importable(folder: Path) -> Generator[None, None, None]:
    """Let this process, and those that it starts, import the modules in a folder."""
    path, before = list(sys.path), os.environ.get("PYTHONPATH")
    sys.path.append(str(folder))
    # ours first: what lies beside the user's modules must not hide them
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), str(folder.resolve()), before)))
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _three(name: str, value: Any) -> list[float]:
    """One number for each of three channels."""
    try:
        numbers = [float(number) for number in (value if hasattr(value, "__len__") else [value])]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3) or (name == "std" and min(numbers) <= 0):
        raise ValueError(f"{name} must be a number or three, those of std above 0, but got {name}={value!r:.60}.")
    return numbers * 3 if len(numbers) == 1 else numbers


def _users_modules(model: nn.Module) -> set[str]:
    """The modules with the user's classes, of which workers may have no copy."""
    names = {type(part).__module__ for part in model.modules()} - {"__main__"}  # that one goes by value anyway
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {
        name
        for name, file in files.items()
        if file and not any(Path(file).is_relative_to(there) for there in (*NOT_THE_USERS, COMMANDS))
    }


@contextmanager
def _by_value(model: nn.Module) -> Generator[None, None, None]:
    modules = [sys.modules[name] for name in sorted(_users_modules(model))]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _sources(model: nn.Module) -> Iterator[bytes]:
    """What the user's classes compute, as text or code: an edit makes another network."""
    users = {*_users_modules(model), "__main__"}
    for kind in sorted({type(part) for part in model.modules()}, key=lambda kind: kind.__qualname__):
        if kind.__module__ in users:
            try:
                yield inspect.getsource(kind).encode()
            except (OSError, TypeError):  # typed into an interpreter
                yield kind.forward.__code__.co_code
