"""Build torchvision's networks, with its ImageNet weights or without, and with a head for our classes."""

import http.client
import os
import pickle
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from trainables.files import sha256
from trainables.stages.models.inspection import describe_error
from trainables.stages.models.torch_private import BatchNorm

# Environment variable that makes torch.load accept tensors and plain containers only.
SAFE_LOAD = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def build_torchvision_model(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build a torchvision classifier by name."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # auxiliary classifiers would return tuples while training
        options = {"aux_logits": False, "init_weights": not pretrained}
    if pretrained:
        model = _load_pretrained(name, options)
        _replace_head(model, num_classes)
    else:
        if name.startswith("vit_"):
            options["image_size"] = image_size
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    for layer in model.modules():
        if isinstance(layer, BatchNorm) and layer.momentum is not None:
            # 0.01, as in MobileNetV3 and EfficientNet, takes thousands of steps to forget the initial statistics
            layer.momentum = max(layer.momentum, 0.1)
    return model


def _load_pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    """Build with ImageNet weights, from a file whose digest matches its name; run no code from that file."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if file.exists():
        _check_digest(file)
    before = os.environ.get(SAFE_LOAD)
    os.environ[SAFE_LOAD] = "1"  # torchvision does not ask for it
    try:
        with redirect_stdout(sys.stderr):
            model: nn.Module = torchvision.models.get_model(name, weights=weights, progress=False, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"--pretrained: {file} holds more than weights ({describe_error(error)}); delete it."
        ) from error
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise ValueError(
            f"--pretrained: the weights of model {name!r} cannot be downloaded ({describe_error(error)}); "
            f"put the file {file.name} into {file.parent}."
        ) from error
    finally:
        os.environ.pop(SAFE_LOAD) if before is None else os.environ.update({SAFE_LOAD: before})
    return model


def _check_digest(file: Path) -> None:
    """Check a file's SHA-256 against the digits at the end of its name, such as `resnet18-f37072fd.pth`."""
    digits = file.stem.rpartition("-")[2]
    if not sha256(file).startswith(digits):
        raise ValueError(
            f"--pretrained: {file} is damaged, or another file: its SHA-256 is not {digits}...; delete it."
        )


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the last Linear num_classes outputs, or the last Conv2d where there is no Linear (SqueezeNet)."""
    linears = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    convs = [n for n, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    name = (linears or convs)[-1]
    old = model.get_submodule(name)
    if isinstance(old, nn.Linear):
        model.set_submodule(name, nn.Linear(old.in_features, num_classes, bias=old.bias is not None))
    elif isinstance(old, nn.Conv2d):
        model.set_submodule(name, nn.Conv2d(old.in_channels, num_classes, 1))
