"""Save the state of a training stage after every epoch, so that a killed stage can resume."""

import json
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from trainables.files import replacing, set_aside, whole_archive
from trainables.records.encoding import decode
from trainables.records.stages import EpochRecord


def save(model: nn.Module, optimizer: torch.optim.Optimizer, curve: list[EpochRecord], path: Path) -> None:
    """Write the state atomically: a reader sees either the old file or the complete new one."""
    rows = json.dumps([asdict(record) for record in curve])
    with replacing(path, part=path.with_suffix(".tmp")) as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": rows}, file)


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, device: torch.device) -> list[EpochRecord]:
    """Load the state if there is one, and return the records of its epochs; a damaged one is set aside."""
    if not whole_archive(path):
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        curve = list(decode(tuple[EpochRecord, ...], json.loads(state["curve"]), where=path))
        own = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if {name: tensor.shape for name, tensor in state["model"].items()} != own:
            raise ValueError("it is the state of another network")
        optimizer.load_state_dict(state["optimizer"])  # changes nothing if it does not fit
    except torch.OutOfMemoryError:  # also a RuntimeError, but the file is intact
        raise
    except (RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError, AttributeError):
        set_aside(path)  # no state of ours, or not of this training: start over
        return []
    model.load_state_dict(state["model"])
    return curve
