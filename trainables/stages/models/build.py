"""Build teachers and students by name: torchvision's and timm's, CIFAR variants, or the user's own function.

Shape letters: B images, C classes.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial

import torchvision
from torch import nn

from trainables.stages.models.inspection import check_logits
from trainables.stages.models.zoo import timm_zoo
from trainables.stages.models.zoo.small_images import (
    LATER,
    SMALL_IMAGE,
    adapt,
    build_alexnet_cifar,
    build_mobilenet_v1_small,
    build_resnet_cifar,
)
from trainables.stages.models.zoo.torchvision_zoo import build_torchvision_model
from trainables.stages.models.zoo.users_functions import build_users_model, digest_source, import_function

# Networks made for small images, which torchvision does not have.
FOR_CIFAR: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet8": partial(build_resnet_cifar, 8),
    "resnet20": partial(build_resnet_cifar, 20),
    "resnet56": partial(build_resnet_cifar, 56),
    "mobilenet_v1_small": build_mobilenet_v1_small,
    "alexnet_small": partial(build_alexnet_cifar, small=True),
}
# The networks that suit small images too; any torchvision classifier, `timm:NAME` and `package.module:function` work as
# well.
MODEL_NAMES = ("resnet18", "mobilenet_v3_small", "alexnet", *FOR_CIFAR, *LATER)


def build_model(name: str, *, num_classes: int, image_size: int, pretrained: bool = False) -> nn.Module:
    """Build a network that takes normalised float images (B, 3, image_size, image_size) and returns logits (B, C).

    Raises:
        ValueError: if the name is unknown, the weights are unavailable, or one image does not give (1, num_classes).
    """
    check_model(name)
    if name.startswith(timm_zoo.PREFIX):
        model = timm_zoo.build_timm_model(name, num_classes=num_classes, image_size=image_size, pretrained=pretrained)
    elif ":" in name:
        model = build_users_model(name, num_classes=num_classes, pretrained=pretrained)
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
    if name.startswith(timm_zoo.PREFIX):
        timm_zoo.check_timm_model(name)
        return
    if ":" in name:
        import_function(name)
        return
    known = [*MODEL_NAMES, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        close = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"Unknown model {name!r}. {hint}Use {', '.join(MODEL_NAMES)}, another torchvision classification model, "
            "timm:NAME or package.module:function."
        )


def source_digest(name: str) -> str:
    """Return what is part of store keys beside the name: timm's version, a digest of the file of a user's model.

    So an edit gives a new key; files that this one imports are not included. For most known names it is empty.
    """
    if name.startswith(timm_zoo.PREFIX):
        return timm_zoo.describe_version(name)
    if ":" not in name:
        # tells results of the adapted network from those stored before it was adapted
        return "small-1" if name in LATER else ""
    return digest_source(name)
