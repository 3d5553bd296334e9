"""Check that a network can be trained and exported, in seconds and before anything is trained."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.records.stages import DatasetRecord
from trainables.stages.export.writer import export, silence_exporters
from trainables.stages.models.build import MODEL_NAMES
from trainables.stages.models.inspection import OUT_OF_MEMORY, USERS_ERRORS, describe_error
from trainables.stages.models.stored import build_to_train
from trainables.stages.models.torch_private import untraceable_line

IMAGES = 12  # exported files are compared in batches of 1, 3 and 8


def check_network(name: str, dataset: DatasetRecord, *, opset: int) -> None:
    """Take one training step with an untrained network, and export it; our own networks are known to do both.

    Pretrained weights that its name asks for are loaded, which downloads them before Ray starts.

    Raises:
        ValueError: if either fails; names the line of the network's code where it does.
    """
    if name in MODEL_NAMES:
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_to_train(name, dataset, pretrained=False)
        images = torch.rand(IMAGES, 3, dataset.image_size, dataset.image_size)
        _check_training(model, images[:2], name=name, num_classes=dataset.num_classes)
        _check_export(model, images, name, dataset, opset)


def _check_training(model: nn.Module, images: Tensor, *, name: str, num_classes: int) -> None:
    model.train()
    try:
        logits = model(images.clone())
        if isinstance(logits, Tensor) and logits.shape == (len(images), num_classes):
            F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64)).backward()
            return
    except OUT_OF_MEMORY:
        raise
    except USERS_ERRORS as error:  # the user's forward() may raise anything
        raise ValueError(f"Model {name!r} fails in training: {describe_error(error)}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise ValueError(
        f"Model {name!r} must return logits of shape ({len(images)}, {num_classes}) for {len(images)} images in"
        f" training, too, but got {shape}."
    )


def _check_export(model: nn.Module, images: Tensor, name: str, dataset: DatasetRecord, opset: int) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            export(
                model,
                mean=dataset.mean,
                std=dataset.std,
                image_size=dataset.image_size,
                class_names=dataset.class_names,
                recipe={},
                parity_images=images,
                opset=opset,
                folder=Path(folder),
                key=name,
            )
    except (*OUT_OF_MEMORY, OSError):
        raise
    except USERS_ERRORS as error:  # exporters and runtimes raise anything on code that they cannot follow
        with silence_exporters():
            line = untraceable_line(model.eval(), images[:2])
        reason = f"forward() must not depend on the pixels or on the number of images in Python, as in {line}"
        raise ValueError(f"Model {name!r} cannot be exported: {reason if line else describe_error(error)}") from error
