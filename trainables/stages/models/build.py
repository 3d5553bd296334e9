"""Build teachers and students by name: torchvision's classifiers, CIFAR variants, or the user's own function.

Shape letters: B images, C classes.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from trainables.files import sha256
from trainables.stages.models.inspection import OUT_OF_MEMORY, USERS_ERRORS, check_logits, describe_error
from trainables.stages.models.small_images import (
    LATER,
    SMALL_IMAGE,
    adapt,
    build_alexnet_cifar,
    build_mobilenet_v1_small,
    build_resnet_cifar,
)
from trainables.stages.models.torchvision_zoo import build_torchvision_model

# Networks made for small images, which torchvision does not have.
FOR_CIFAR: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet8": partial(build_resnet_cifar, 8),
    "resnet20": partial(build_resnet_cifar, 20),
    "resnet56": partial(build_resnet_cifar, 56),
    "mobilenet_v1_small": build_mobilenet_v1_small,
    "alexnet_small": partial(build_alexnet_cifar, small=True),
}
# The networks that suit small images too; any torchvision classifier and `package.module:function` work as well.
MODEL_NAMES = ("resnet18", "mobilenet_v3_small", "alexnet", *FOR_CIFAR, *LATER)

OURS = ("analysis", "sweeps", "trainables")


def build_model(name: str, *, num_classes: int, image_size: int, pretrained: bool = False) -> nn.Module:
    """Build a network that takes normalised float images (B, 3, image_size, image_size) and returns logits (B, C).

    Raises:
        ValueError: if the name is unknown, the weights are unavailable, or one image does not give (1, num_classes).
    """
    check_model(name)
    if ":" in name:
        model = _build_users_model(name, num_classes=num_classes, pretrained=pretrained)
    elif name in FOR_CIFAR or (name == "alexnet" and image_size < SMALL_IMAGE):
        if pretrained:
            raise ValueError(f"--pretrained: no weights exist for model {name!r} at image_size={image_size}.")
        make = FOR_CIFAR.get(name, partial(build_alexnet_cifar, small=False))
        model = make(num_classes, image_size)
    else:
        model = build_torchvision_model(name, num_classes=num_classes, image_size=image_size, pretrained=pretrained)
        if image_size < SMALL_IMAGE:
            adapt(name, model, pretrained=pretrained, num_classes=num_classes)
    check_logits(model, name=name, num_classes=num_classes, image_size=image_size)
    return model


def check_model(name: str) -> None:
    """Check that `build_model` knows the name; build nothing, but import the user's module.

    Raises:
        ValueError: if it does not; one line with close names, or what is wrong with `package.module:function`.
    """
    if ":" in name:
        _import_users_function(name)
        return
    known = [*MODEL_NAMES, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        close = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"Unknown model {name!r}. {hint}Use {', '.join(MODEL_NAMES)}, another torchvision classification model, "
            "or package.module:function."
        )


def source_digest(name: str) -> str:
    """Return a digest of the file that defines a user's model; it is part of store keys, so an edit gives a new key.

    Files that this one imports are not included. For most known names the digest is empty.
    """
    if ":" not in name:
        # tells results of the adapted network from those stored before it was adapted
        return "small-1" if name in LATER else ""
    file = inspect.getsourcefile(importlib.import_module(name.partition(":")[0]))
    return sha256(Path(file))[:16] if file else ""


def _import_users_function(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] in OURS:
        raise ValueError(f"Model {name!r}: {module_name!r} is a module of this tool; give yours another name.")
    try:
        module = importlib.import_module(module_name)
    except USERS_ERRORS as error:  # the user's module may raise anything while it is imported
        raise ValueError(
            f"Model {name!r}: cannot import {module_name!r} ({describe_error(error)}); is its folder on PYTHONPATH?"
        ) from error
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"Model {name!r}: {module_name!r} has no function {attribute!r}.")
    found: Callable[..., Any] = function
    return found


def _build_users_model(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ValueError(f"--pretrained is for torchvision models; load weights inside the function of model {name!r}.")
    try:
        model = _import_users_function(name)(num_classes=num_classes)
    except OUT_OF_MEMORY:
        raise
    except USERS_ERRORS as error:  # the user's function may raise anything
        raise ValueError(f"Model {name!r}: the function raised {describe_error(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"Model {name!r} must return a torch.nn.Module, but got {type(model).__name__}.")
    return model
