"""Build timm's networks, `timm:NAME` or `timm:NAME.TAG`, fitted to our classes and images.

A TAG names pretrained weights on the Hugging Face hub. They are taken from its cache on this machine if they are there,
and downloaded otherwise.
"""

import copy
import difflib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainables.stages.models.inspection import OUT_OF_MEMORY, check_logits, describe_error
from trainables.stages.models.torch_private import BatchNorm
from trainables.stages.models.zoo.small_images import SMALL_IMAGE, shrink_stem

PREFIX = "timm:"
FITTED = 1  # to be incremented when the same name would be fitted to small images in another way
WEIGHTS_FILE = "model.safetensors"  # tensors alone: nothing in it can be executed
EXTRA = "pip install 'compression-sweeps[timm]'"


def build_timm_model(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build `timm:NAME[.TAG]` for our classes and image size, with its pretrained weights if asked for.

    Transformers and mixers get positions for this image size; below 64 pixels, their patches are a quarter as wide, and
    early strides of convolutional networks are removed. Pretrained positions and patches are resampled by timm.

    Raises:
        ValueError: if the weights are unavailable, or do not fit this image size.
    """
    import timm

    found = timm.models.get_pretrained_cfg(_own_name(name))
    options: dict[str, Any] = {"num_classes": num_classes}
    if found is not None and found.fixed_input_size:
        options["img_size"] = image_size
        if image_size < SMALL_IMAGE and (patch := _find_patch(name, options)) is not None:
            options["patch_size"] = max(1, patch // 4)
    if pretrained:
        file = _find_weights(name, found)
        # by its path: timm would ask the hub first, which takes half a minute without a network
        options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    try:
        model: nn.Module = timm.create_model(_own_name(name), pretrained=pretrained, **options)
    except OUT_OF_MEMORY:  # says nothing about the model
        raise
    except Exception as error:  # a model of timm may raise anything on an image size that it was not made for
        what = "its weights do not fit" if pretrained else "it cannot be built for"
        raise ValueError(
            f"Model {name!r}: {what} image_size={image_size} ({describe_error(error)}); take the size of its name or "
            "another model."
        ) from error
    if image_size < SMALL_IMAGE and "img_size" not in options:
        model = _enlarge_maps(name, model, num_classes=num_classes, image_size=image_size, pretrained=pretrained)
    for layer in model.modules():
        if isinstance(layer, BatchNorm) and layer.momentum is not None:
            layer.momentum = max(layer.momentum, 0.1)  # as torchvision's networks get it
    return model


def check_timm_model(name: str) -> None:
    """Check that timm is installed and knows the name; build nothing.

    Raises:
        ValueError: if not; one line with close names or the tags that there are.
    """
    if importlib.util.find_spec("timm") is None:
        raise ValueError(f"Model {name!r} needs timm, which is not installed: {EXTRA}, or take another model.")
    import timm

    architecture, tag = timm.models.split_model_name_tag(_own_name(name))
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(PREFIX + one for one in close)}?" if close else "see timm.list_models()."
        raise ValueError(f"Unknown model {name!r}: timm has no {architecture!r}; {hint}")
    if tag and not timm.models.is_model_pretrained(_own_name(name)):
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        there = f"it has {', '.join(tags)}" if tags else "it has none; leave the tag out"
        raise ValueError(f"Unknown model {name!r}: {architecture!r} has no weights of the tag {tag!r}; {there}.")


def names_weights(name: str) -> bool:
    """Whether the name asks for pretrained weights by a tag, as `timm:resnet18.a1_in1k` does."""
    return name.startswith(PREFIX) and "." in name


def describe_version(name: str) -> str:
    """The part of store keys that says which code made the network and, where no tag is named, which tag it takes.

    timm's whole version: any release may change initial weights, a forward pass or a default tag.
    """
    return f"timm {version('timm')} fitted {FITTED}"


def _own_name(name: str) -> str:
    return name.removeprefix(PREFIX)


def _find_weights(name: str, found: Any) -> Path:
    """Find the weights in the cache of the Hugging Face hub, or download them into it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = None if found is None else found.hf_hub_id
    if not hub:
        raise ValueError(f"--pretrained: model {name!r} has no weights on the Hugging Face hub; leave it out.")
    file = found.hf_hub_filename or WEIGHTS_FILE
    if not file.endswith(".safetensors"):
        raise ValueError(f"Model {name!r}: its weights are no .safetensors, which alone are read; take another tag.")
    try:
        with _quiet_hub():
            try:
                return Path(hf_hub_download(hub, file, local_files_only=True))
            except LocalEntryNotFoundError:
                return Path(hf_hub_download(hub, file))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Model {name!r}: its weights are not in the Hugging Face cache (HF_HOME) and cannot be downloaded "
            f"({type(error).__name__}); run `hf download {hub} {file}` where there is a network and copy the cache, or "
            f"take {name.partition('.')[0]} without --pretrained."
        ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's retries off the screen; what comes of them is told in one line."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def _find_patch(name: str, options: dict[str, Any]) -> int | None:
    """The side of the square patches that a network takes, if they are wide and can be chosen; None otherwise."""
    import timm

    with torch.random.fork_rng(devices=()):  # must not shift the weights of the network that is built next
        try:
            model = timm.create_model(_own_name(name), **options)
            patch = next(layer.kernel_size[0] for layer in model.modules() if isinstance(layer, nn.Conv2d))
            timm.create_model(_own_name(name), **options, patch_size=max(1, patch // 4))
        except Exception:  # each of timm's models has arguments and assertions of its own
            return None
    return int(patch) if patch >= 8 else None


def _enlarge_maps(name: str, model: nn.Module, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Remove early strides, unless the network then fails, as one does whose branches have strides of their own."""
    larger = copy.deepcopy(model)
    _keep_resolution(larger, pretrained=pretrained)
    try:
        check_logits(larger, name=name, num_classes=num_classes, image_size=image_size)
    except ValueError:
        return model
    return larger


def _keep_resolution(model: nn.Module, *, pretrained: bool) -> None:
    """Remove the stride of the stem, and of the pooling or depthwise convolution that follows it, in place."""
    strided: list[tuple[str, nn.Conv2d | nn.MaxPool2d]] = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and layer.stride not in (1, (1, 1))
    ]
    name, stem = strided[0] if strided else ("", None)
    if not isinstance(stem, nn.Conv2d):
        return
    if stem.kernel_size == (7, 7):
        model.set_submodule(name, shrink_stem(stem, pretrained=pretrained))
    elif stem.kernel_size != stem.stride:
        stem.stride = (1, 1)
    elif not pretrained and stem.kernel_size == (4, 4):  # patches; pretrained weights would not fit smaller ones
        smaller = nn.Conv2d(stem.in_channels, stem.out_channels, 2, stride=2, bias=stem.bias is not None)
        nn.init.trunc_normal_(smaller.weight, std=0.02)
        model.set_submodule(name, smaller)
        return
    name, second = strided[1] if len(strided) > 1 else ("", None)
    if isinstance(second, nn.MaxPool2d):
        model.set_submodule(name, nn.Identity())
    elif isinstance(second, nn.Conv2d) and second.groups == second.in_channels > 1:  # no shortcut runs beside it
        second.stride = (1, 1)
