"""Cut the trained student towards its pruning ratio, and record the widths that a cut leaves."""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config.candidate import Candidate
from trainables.config.compression import PruneConfig
from trainables.files import write_text
from trainables.layout import RECORD
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord, ModelRecord
from trainables.stages.data.augment.pixels import resize
from trainables.stages.data.on_device import Images
from trainables.stages.data.splits import sample_evenly
from trainables.stages.models.attention import find_attentions
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count
from trainables.stages.models.placement import set_up_kernels
from trainables.stages.models.stored import build_for, load_model
from trainables.stages.pruning.allocation import Plan, step_of
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.criteria import Batches
from trainables.stages.pruning.methods import Counts, PruneSummary, check_removed, compare, prune
from trainables.stages.workspace import Bench
from trainables.store.results import stage_key

log = logging.getLogger(__name__)

TAYLOR_IMAGES = 512
TAYLOR_BATCH = 64
PLAN_FILE = "pruning.json"
# Settings that keys of older stores lack.
_NEW = ("pruning_criterion", "pruning_scope", "pruning_steps", "prune_ignore", "recovery_budget")


def key_parts(config: PruneConfig) -> dict[str, Any]:
    """The settings that decide a pruning's result, for store keys; `_NEW` ones are left out at their defaults."""
    row = vars(config)
    return {name: value for name, value in row.items() if name not in _NEW or value != getattr(PruneConfig, name)}


def cut(
    model: nn.Module,
    config: PruneConfig,
    bench: Bench,
    *,
    channel_ratio: float,
    dense: Mapping[str, int],
    step: int = 1,
    plan: Mapping[str, int] | None = None,
) -> PruneSummary:
    """Make cut number `step` of `pruning_steps` in place; after it, `step / pruning_steps` of the ratio is gone.

    The gradients of `taylor` are computed on the device of the images, as the candidate's training is: the precision
    and determinism that another stage left in the process would decide which channels go.

    Args:
        model: on the CPU, before and afterwards.
        config: in canonical form.
        channel_ratio: fraction of channels that `structured` removes in all cuts together.
        dense: widths of the network before the first cut.
        plan: the widths to leave, where they are known.
    """
    device, dataset = bench.images.mean.device, bench.dataset
    if config.pruning_criterion == "taylor":
        set_up_kernels(device, bench.candidate.training)
        model.to(device)
    summary = prune(
        model,
        method=config.pruning_method,
        ratio=_whole_ratio(config, channel_ratio) * step / config.pruning_steps,
        image_size=dataset.image_size,
        num_classes=dataset.num_classes,
        criterion=config.pruning_criterion,
        scope=config.pruning_scope,
        dense=dense,
        plan=plan,
        ignore=config.ignored,
        batches=gradient_images(bench.images, next(model.parameters()).device),
        must_remove=config.pruning_steps == 1,
    )
    model.to("cpu")
    return summary


def cut_untrained(
    model: nn.Module,
    config: PruneConfig,
    dataset: DatasetRecord,
    *,
    channel_ratio: float,
    plan: Mapping[str, int] | None = None,
    must_remove: bool = True,
) -> None:
    """Give an untrained model the shape that a trained one gets; which channels go is arbitrary.

    If every layer loses the same share, the ratio alone decides the shape; `bn_scale` spares layers without BatchNorm.
    For scopes other than `layer` the shape is that of the same ratio in every layer, which is only an estimate, unless
    `plan` gives the widths left of the trained network.
    """
    prune(
        model,
        method=config.pruning_method,
        ratio=_whole_ratio(config, channel_ratio),
        image_size=dataset.image_size,
        num_classes=dataset.num_classes,
        # no gradients here, and scores of random weights mean nothing: magnitude is the cheapest
        criterion="bn_scale" if config.pruning_criterion == "bn_scale" and plan is None else "magnitude",
        plan=plan,
        ignore=config.ignored,
        must_remove=must_remove,
    )


def check_cut(network: str, config: PruneConfig, dataset: DatasetRecord) -> None:
    """Cut an untrained network, before anything is trained for a cut that would fail.

    Raises:
        ValueError: if `structured` cannot cut it.
    """
    if config.removes_channels:
        model = build_for(network, dataset)
        cut_untrained(model, config, dataset, channel_ratio=config.pruning_ratio, must_remove=False)


def _whole_ratio(config: PruneConfig, channel_ratio: float) -> float:
    return channel_ratio if config.pruning_method == "structured" else config.pruning_ratio


def plan_cut(bench: Bench, student: ModelRecord, *, channel_ratio: float) -> dict[str, int]:
    """Cut the trained student once and keep the widths left, or find them in the store.

    For scopes other than `layer`, the trained weights decide the widths.
    """
    config = dataclasses.replace(bench.candidate.prune, pruning_steps=1)
    decides = {"criterion": config.pruning_criterion, "scope": config.pruning_scope, "channel_ratio": channel_ratio}
    decides |= {"prune_ignore": config.prune_ignore} if config.prune_ignore else {}
    key = stage_key("plan", version=2, parents=[student.key], **decides)

    def compute(folder: Path) -> None:
        model = load_model(student)
        before, dense = count(model, bench.dataset.image_size), widths(model)
        with bench.place.device_lock().shared():
            cut(model, config, bench, channel_ratio=channel_ratio, dense=dense)
        write_plan(model, before, config, bench.dataset, folder, dense=dense, channel_ratio=channel_ratio)
        write_text(folder / RECORD, to_json({"student": student.key}))

    return read_plan(bench.place.store.once(key, compute))


def gradient_images(images: Images, device: torch.device) -> Batches:
    """Up to 512 labelled training images without augmentation, evenly spread; the same for all trials."""
    images = images.labelled()

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        picks = torch.from_numpy(sample_evenly(len(images.train_labels), TAYLOR_IMAGES))
        for part in picks.split(TAYLOR_BATCH):
            index = part.to(images.train_labels.device)
            plain = resize(images.train_images[index].to(images.mean.device), images.image_size)
            pixels = images.normalise(plain / 255)
            yield pixels.to(device), images.train_labels[index].to(device)

    return batches


def write_plan(
    model: nn.Module,
    before: Counts,
    config: PruneConfig,
    dataset: DatasetRecord,
    folder: Path,
    *,
    dense: Mapping[str, int],
    channel_ratio: float,
) -> None:
    """Write what was achieved, and the width of every layer before and after, beside the weights.

    Layers that had to lose channels and kept all, or lost more or fewer than asked for, are named there and in the log.

    Raises:
        ValueError: if all cuts together removed nothing.
    """
    summary = compare(
        model, before, method=config.pruning_method, ratio=config.pruning_ratio, image_size=dataset.image_size
    )
    check_removed(summary)
    left = widths(model)
    whole = _uncut(config, dense, left, channel_ratio, dataset.num_classes)
    unlike = _unlike(model, dense, left, channel_ratio) if _is_even(config) else []
    if whole or unlike:
        told = [f"{name} kept all" for name in whole]
        told += [f"{name} kept {left[name]} of {dense[name]}" for name in unlike]
        log.warning("pruning: %.3g of every layer's channels had to go; %s", channel_ratio, ", ".join(told))
    about = {"channel_ratio": channel_ratio, "uncut": whole, "unlike": unlike}
    found = {"channels": left, "dense_channels": dict(dense), **about}
    write_text(folder / PLAN_FILE, to_json(dataclasses.asdict(summary) | found))


def _uncut(config: PruneConfig, dense: Plan, left: Plan, channel_ratio: float, num_classes: int) -> list[str]:
    """Layers that had to lose at least a step of channels and lost none, the classifier and ignored ones excepted."""
    if not _is_even(config):
        return []
    classifier = [name for name, width in dense.items() if width == num_classes][-1:]
    return [
        name
        for name, width in dense.items()
        if left[name] == width and name not in classifier and width * channel_ratio >= step_of(width)
    ]


def _unlike(model: nn.Module, dense: Plan, left: Plan, channel_ratio: float) -> list[str]:
    """Layers that lost channels, but by more than rounding another number than asked for, as those of a maxout do."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    grouped = max((layer.groups for layer in layers if layer.groups < layer.out_channels), default=1)
    heads = {f"{name}.qkv": 3 * block.head_dim for name, block in find_attentions(model).items()}
    return [
        name
        for name, width in dense.items()
        if left[name] != width
        and abs(width * (1 - channel_ratio) - left[name]) > max(step_of(width), grouped, heads.get(name, 1))
    ]


def _is_even(config: PruneConfig) -> bool:
    """Whether every layer has to lose the same share of its channels."""
    return config.removes_channels and config.pruning_scope == "layer" and not config.ignored


def read_plan(folder: Path) -> dict[str, int]:
    """Read the width of every layer of a pruned network from its folder in the store."""
    channels: dict[str, int] = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))["channels"]
    return channels


def achieved(candidate: Candidate, pruned: ModelRecord) -> dict[str, float]:
    """What pruning achieved on the dense student, as metrics: shares (0 to 1) of parameters, MACs and channels removed.

    Zeroed parameters count as removed, but are still multiplied. Widths are rounded and some layers cannot be cut, so
    the shares differ from `pruning_ratio`.
    """
    params, macs, dense_widths = _dense(candidate.network, pruned.num_classes, pruned.image_size)
    left = pruned.num_params if candidate.prune.pruning_method == "structured" else pruned.num_nonzero_params
    channels = sum(widths(load_model(pruned)).values())
    return {
        "achieved_params_ratio": 1 - left / params,
        "achieved_macs_ratio": 1 - pruned.macs / macs,
        "achieved_channel_ratio": 1 - channels / dense_widths,
    }


@functools.lru_cache
def _dense(name: str, num_classes: int, image_size: int) -> tuple[int, int, int]:
    """Parameters, MACs and channels of all layers of the network before it is pruned."""
    with torch.random.fork_rng(devices=()):  # building draws random weights, which must not shift the trial's seed
        model = build_model(name, num_classes=num_classes, image_size=image_size)
    params, _, macs = count(model, image_size)
    return params, macs, sum(widths(model).values())
