"""Builds teachers and students by name: torchvision's classifiers, CIFAR variants, or the user's own function.

Shape letters: B images, C classes.
"""

import difflib
import hashlib
import http.client
import importlib
import inspect
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.manifest import sha256
from trainables.stages.small_images import LATER, SMALL_IMAGE, adapt, alexnet_cifar

MODEL_NAMES = ("resnet18", "mobilenet_v3_small", "alexnet", "alexnet_small", *LATER)
"""Names tuned for small images too; every torchvision classifier and `package.module:function` work beside them."""

SAFE_LOAD = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable with which torch.load takes tensors and plain containers alone."""
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""Transient: never turned into a ValueError, which stands for a failure that will come again."""


def build_model(name: str, *, num_classes: int, image_size: int, pretrained: bool = False) -> nn.Module:
    """A network that takes normalised float images (B, 3, image_size, image_size) and returns logits (B, C).

    Raises:
        ValueError: if the name is unknown, the weights cannot be had, or one image does not give (1, num_classes).
    """
    check_model(name)
    if ":" in name:
        model = _users_model(name, num_classes=num_classes, pretrained=pretrained)
    elif name == "alexnet_small" or (name == "alexnet" and image_size < SMALL_IMAGE):
        if pretrained:
            raise ValueError(f"--pretrained: no weights exist for model {name!r} at image_size={image_size}.")
        model = alexnet_cifar(num_classes, image_size, small=name == "alexnet_small")
    else:
        model = _torchvision_model(name, num_classes=num_classes, image_size=image_size, pretrained=pretrained)
        if image_size < SMALL_IMAGE:
            adapt(name, model, pretrained=pretrained, num_classes=num_classes)
    check_logits(model, name=name, num_classes=num_classes, image_size=image_size)
    return model


def check_model(name: str) -> None:
    """Returns if `build_model` knows the name; builds nothing, but imports the user's module.

    Raises:
        ValueError: one line with close names, or what is wrong with `package.module:function`.
    """
    if ":" in name:
        _users_function(name)
        return
    known = [*MODEL_NAMES, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        close = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"Unknown model {name!r}. {hint}Use {', '.join(MODEL_NAMES)}, another torchvision classification model, "
            "or package.module:function."
        )


def source_of(name: str) -> str:
    """Digest of the file that defines a user's model, empty for most known names: an edited model is another model.

    Files that this one imports are not looked at.
    """
    if ":" not in name:
        return "small-1" if name in LATER else ""
    file = inspect.getsourcefile(importlib.import_module(name.partition(":")[0]))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def check_logits(model: nn.Module, *, name: str, num_classes: int, image_size: int) -> None:
    """Returns if one image gives logits of shape (1, num_classes); the model's mode is kept.

    Raises:
        ValueError: with what came out instead, or why nothing did.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=_device(model))
    with evaluating(model), torch.no_grad():
        try:
            logits = model(image)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # the user's forward() may raise anything
            reason = _first_line(error)
            raise ValueError(f"Model {name!r} fails on one image of image_size={image_size}: {reason}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(
            f"Model {name!r} must return logits of shape (1, {num_classes}) for an image, but got {shape}."
        )


class Normalised(nn.Module):
    """A network behind its normalisation: pixels in [0, 1] to logits; no call of it waits for a GPU."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: three numbers each, channels R G B."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C)."""
        logits: Tensor = self.model((image - self.mean) / self.std)
        return logits


def recalibrate_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of BatchNorm by their plain average over the batches; nothing else changes.

    Torchvision's MobileNetV3 stays at chance for its first epochs without it: running statistics with momentum 0.01
    still remember their start, while the weights have moved on. Dropout is off meanwhile; modes and momenta are
    restored. Does nothing (and draws no batch) without BatchNorm.

    Raises:
        ValueError: if there is no batch.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    seen = 0
    with evaluating(model), torch.no_grad():
        try:
            for images in batches:
                if seen == 0:
                    for layer in layers:
                        layer.reset_running_stats()
                        layer.train()
                for layer in layers:  # the cumulative average; with None PyTorch asks the device for the count
                    layer.momentum = 1 / (seen + 1)
                model(images)
                seen += 1
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    if seen == 0:
        raise ValueError("`batches` must hold at least one batch to recalibrate BatchNorm, but got batches=0.")


def count(model: nn.Module, image_size: int) -> tuple[int, int, int]:
    """Returns (num_params, num_nonzero_params, macs): elements of all parameters, multiply-accumulates of one image.

    MACs are those of Conv2d and Linear modules: out elements x in_channels / groups x kernel area, and out elements x
    in_features. Biases, normalisation, activations and the products inside attention are not counted.
    """
    macs = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, image_size, image_size, device=_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters), macs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _users_function(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ValueError(
            f"Model {name!r}: cannot import {module_name!r} ({_first_line(error)}); is its folder on PYTHONPATH?"
        ) from error
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"Model {name!r}: {module_name!r} has no function {attribute!r}.")
    found: Callable[..., Any] = function
    return found


def _users_model(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ValueError(f"--pretrained is for torchvision models; load weights inside the function of model {name!r}.")
    try:
        model = _users_function(name)(num_classes=num_classes)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # the user's function may raise anything
        raise ValueError(f"Model {name!r}: the function raised {_first_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"Model {name!r} must return a torch.nn.Module, but got {type(model).__name__}.")
    return model


def _torchvision_model(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # auxiliary classifiers would return tuples while training
        options = {"aux_logits": False, "init_weights": not pretrained}
    if pretrained:
        model = _pretrained(name, options)
        _replace_head(model, num_classes)
    else:
        if name.startswith("vit_"):
            options["image_size"] = image_size
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.momentum is not None:
            # 0.01, as in MobileNetV3 and EfficientNet, needs thousands of steps to forget its start
            layer.momentum = max(layer.momentum, 0.1)
    return model


def _pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    """With ImageNet weights, from a file that is what its name says and is read without running what it holds."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if file.exists():
        _check_digest(file)
    before = os.environ.get(SAFE_LOAD)
    os.environ[SAFE_LOAD] = "1"  # torchvision itself asks for no such thing
    try:
        with redirect_stdout(sys.stderr):
            model: nn.Module = torchvision.models.get_model(name, weights=weights, progress=False, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(f"--pretrained: {file} holds more than weights ({_first_line(error)}); delete it.") from error
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise ValueError(
            f"--pretrained: the weights of model {name!r} cannot be downloaded ({_first_line(error)}); "
            f"put the file {file.name} into {file.parent}."
        ) from error
    finally:
        os.environ.pop(SAFE_LOAD) if before is None else os.environ.update({SAFE_LOAD: before})
    return model


def _check_digest(file: Path) -> None:
    """Return if a file's SHA-256 begins as its name, `resnet18-f37072fd.pth`, ends."""
    digits = file.stem.rpartition("-")[2]
    if not sha256(file).startswith(digits):
        raise ValueError(
            f"--pretrained: {file} is damaged, or another file: its SHA-256 is not {digits}...; delete it."
        )


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Gives the last Linear (of SqueezeNet, which has none: the last Conv2d) num_classes outputs."""
    linears = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    convs = [n for n, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    name = (linears or convs)[-1]
    old = model.get_submodule(name)
    if isinstance(old, nn.Linear):
        model.set_submodule(name, nn.Linear(old.in_features, num_classes, bias=old.bias is not None))
    elif isinstance(old, nn.Conv2d):
        model.set_submodule(name, nn.Conv2d(old.in_channels, num_classes, 1))
