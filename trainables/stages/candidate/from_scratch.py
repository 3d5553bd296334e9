"""The control arm of pruning: the pruned shape, trained from random weights for the champion's whole budget."""

from collections.abc import Mapping
from pathlib import Path

import torch

from trainables.config.candidate import Candidate
from trainables.records.stages import DatasetRecord, ModelRecord
from trainables.stages.models.placement import move
from trainables.stages.models.stored import build_for
from trainables.stages.pruning.cuts import cut_untrained, key_parts
from trainables.stages.pruning.methods import masks
from trainables.stages.training.lessons import Distillation
from trainables.stages.training.loop import recalibrate, seed_for
from trainables.stages.training.stage import Epochs, Made, fit, obtain_model
from trainables.stages.training.student import student_loop
from trainables.stages.workspace import Bench
from trainables.store.results import Key, stage_key

VERSION = 5


def scratch_key(
    candidate: Candidate,
    dataset: DatasetRecord,
    teacher: ModelRecord,
    *,
    channel_ratio: float,
    plan: Mapping[str, int] | None = None,
) -> Key:
    """Where the pruned shape of this candidate, trained from random weights, lies in the store."""
    return stage_key(
        "scratch",
        version=VERSION,
        parents=[dataset.fingerprint, teacher.key],
        channel_ratio=channel_ratio,
        **({} if plan is None else {"plan": dict(plan)}),
        **candidate.data.unlabeled_key(),
        **vars(candidate.augment),
        **vars(candidate.training),
        **candidate.student.key_parts(),
        **key_parts(candidate.prune),
    )


def train_from_scratch(
    bench: Bench, teacher: ModelRecord, *, channel_ratio: float, plan: Mapping[str, int] | None = None
) -> Epochs:
    """Train the pruned shape from random weights, or find it in the store; yields its epochs.

    The untrained student is pruned as a trained one would be, then distilled with the same loss for student_epochs +
    recovery_epochs under one schedule that peaks at learning_rate. `structured` removes the same number of channels
    from a layer whatever their weights are, so this is the champion's shape: a narrower dense student of about the
    same latency is this very network. Which channels (or, with `l1_unstructured`, which weights) go is chance here.
    Weights, batch order and views are those that the champion's student of the same seed begins with, so that the two
    can be compared in pairs. Never pretrained (cf. Liu et al., arXiv:1810.05270).

    Args:
        plan: the champion's widths, where its trained weights decided them.
    """
    candidate, dataset, images = bench.candidate, bench.dataset, bench.images
    key = scratch_key(candidate, dataset, teacher, channel_ratio=channel_ratio, plan=plan)

    def make(folder: Path) -> Made:
        torch.manual_seed(seed_for(candidate.training.seed, "student", "weights"))
        model = build_for(candidate.network, dataset)
        cut_untrained(model, candidate.prune, dataset, channel_ratio=channel_ratio, plan=plan)
        move(model, images.mean.device, image_size=images.image_size)  # masks lie where the weights will
        loop = student_loop(candidate, more_epochs=candidate.prune.recovery_epochs)
        zeros = masks(model, candidate.prune.pruning_method)
        curve = yield from fit(bench, model, loop, Distillation.of(bench, teacher, loop), folder, zeros)
        if not curve:  # nothing has estimated BatchNorm yet
            recalibrate(model, loop, images)
        return model, curve

    return obtain_model(bench, key, candidate.network, make)
