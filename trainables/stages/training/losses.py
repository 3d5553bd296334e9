"""The student's loss: (1 - alpha) * cross-entropy of the labels + alpha * a soft term of the teacher.

All soft terms share one signature, compute in float32 for any input type, and average over the batch. Papers weigh
`w_hard * CE + w_soft * soft`; ours is that divided by `w_hard + w_soft`, so `alpha = w_soft / (w_hard + w_soft)`
(AdamW ignores the common factor). Each docstring gives its paper's weights and the alpha they become.

Soft terms are those of each sample, because samples without a label have alpha = 1.

Shape letters: B batch, C classes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config.candidate import StudentConfig


class SoftTerm(Protocol):
    """The teacher's part of the loss, of each sample."""

    def __call__(self, student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
        """Compare logits [B, C]; `target` holds class indices [B] or probabilities [B, C] (Mixup). Returns [B]."""


def distillation_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    target: Tensor,
    *,
    settings: StudentConfig,
    label_smoothing: float,
    labelled_B: Tensor | None = None,
) -> Tensor:
    """(1 - alpha) * CE(labels) + alpha * SOFT_TERMS[kd_loss], mean over the batch.

    `alpha` weighs the soft, teacher term (RepDistiller's convention; torchdistill's is the opposite). alpha=0 and
    kd_loss=none are cross-entropy, alpha=1 learns from the teacher only; the loss is continuous in between.

    Args:
        labelled_B: which samples have a label, bool; the others learn from the teacher only, whatever alpha is. None if
            all have one.
    """
    hard = hard_term(student_BC, target, label_smoothing=label_smoothing, labelled_B=labelled_B)
    alpha = settings.soft_weight
    if settings.kd_loss == "none" or (alpha == 0 and labelled_B is None):
        return hard
    if labelled_B is not None:
        target = _with_teachers_class(target, teacher_BC, labelled_B)
    soft_B = SOFT_TERMS[settings.kd_loss](student_BC, teacher_BC, target, settings=settings)
    weight = alpha if labelled_B is None else torch.where(labelled_B, alpha, 1.0)
    return (1 - alpha) * hard + (weight * soft_B).mean()


def hard_term(
    student_BC: Tensor, target: Tensor, *, label_smoothing: float, labelled_B: Tensor | None = None
) -> Tensor:
    """Cross-entropy with the labels, mean over the batch, in nats; 0 for a sample without a label.

    Args:
        student_BC: logits [B, C].
        target: class indices [B] or probabilities [B, C] (Mixup).
        label_smoothing: share of the label mass spread over all classes, in [0, 1).
        labelled_B: which samples have a label, bool; None if all have one.
    """
    if labelled_B is None:
        return F.cross_entropy(student_BC.float(), target, label_smoothing=label_smoothing)
    loss_B = F.cross_entropy(student_BC.float(), target, label_smoothing=label_smoothing, reduction="none")
    return (labelled_B * loss_B).mean()


def soft_term(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) of each sample [B], in nats.

    T^2 keeps the gradient's size independent of the temperature (arXiv:1503.02531, section 2). It is a sum over
    classes: their mean would be C times too small.

    Args:
        student_BC: logits [B, C]; computed in float32 for any input type.
        teacher_BC: logits [B, C], no gradient.
        temperature: > 0.
    """
    return temperature**2 * _kl(teacher_BC.float() / temperature, student_BC.float() / temperature)


def kd(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """`soft_term`: T^2 * KL of softened probabilities, in nats (Hinton, arXiv:1503.02531). Targets are not read.

    RepDistiller and mdistiller: 0.1 * CE + 0.9 * kd at T=4, so alpha=0.9.
    """
    return soft_term(student_BC, teacher_BC, temperature=settings.temperature)


def logit_std(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """`soft_term` of z-scored logits, in nats (Sun et al., CVPR 2024, arXiv:2403.01427). Targets are not read.

    z = (logits - mean) / standard deviation, over a sample's C classes: the student copies the teacher's order and
    proportions, not its scale. The deviation is the sample's (C - 1), as in the authors' code. With two classes a
    z-score is only a sign: the term has no gradient, and only the labels teach.

    Paper: 0.1 * CE + 9 * soft at T=2, so alpha=0.989.
    """
    student_BC, teacher_BC = _z_scores(student_BC), _z_scores(teacher_BC)
    return soft_term(student_BC, teacher_BC, temperature=settings.temperature)


def dkd(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """T^2 * (TCKD + dkd_beta * NCKD), in nats (decoupled KD, arXiv:2203.08679, section 3).

    TCKD is the KL of (target, not target), NCKD the KL over the other C - 1 classes. `kd` is TCKD + (1 - p) * NCKD
    with p the teacher's probability of the target: a confident teacher silences NCKD, which `dkd_beta` weighs here
    instead. With two classes NCKD is 0 and the term equals `kd`. Of probabilities [B, C] the two largest count, each
    with its share (Mixup has no more). Without a label, the target is the teacher's most probable class.

    Paper: CE + soft (TCKD weighs 1), so alpha=0.5, with T=4 and dkd_beta from 2 to 8 on CIFAR-100, T=1 and 0.5 to 2
    on ImageNet. The paper's linear warm-up over 20 of 240 epochs is left out.
    """
    student_BC, teacher_BC = student_BC.float() / settings.temperature, teacher_BC.float() / settings.temperature
    if target.ndim == 1:
        share_BK, classes_BK = torch.ones_like(student_BC[:, :1]), target[:, None]
    else:
        share_BK, classes_BK = target.float().topk(min(2, target.shape[1]), dim=1)
        share_BK = share_BK / share_BK.sum(1, keepdim=True)
    term_B = torch.zeros_like(student_BC[:, 0])
    for share_B, class_B in zip(share_BK.unbind(1), classes_BK.unbind(1), strict=True):
        term_B = term_B + share_B * _decoupled(student_BC, teacher_BC, class_B, beta=settings.dkd_beta)
    return settings.temperature**2 * term_B


def dist(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """T^2 * (inter + intra), dimensionless, 0 to 4 T^2 (DIST, arXiv:2205.10536, section 4). Targets are not read.

    inter is 1 - Pearson correlation of teacher and student probabilities, softened by T, over a sample's classes;
    intra is the same over a class's samples of the batch. A correlation ignores the scale and shift of probabilities,
    so T^2, which the authors keep from `kd`, gives the term more weight at high temperatures. intra, which compares the
    samples of a batch, is the same for all of them.

    Paper: CE + 2 * inter + 2 * intra, T=1 on ImageNet, T=4 on CIFAR-100: one weight serves both, alpha=2/3.
    """
    student_BC = F.softmax(student_BC.float() / settings.temperature, dim=1)
    teacher_BC = F.softmax(teacher_BC.float() / settings.temperature, dim=1)
    inter_B = 1 - _correlation(student_BC, teacher_BC)
    intra = 1 - _correlation(student_BC.T, teacher_BC.T).mean()
    return settings.temperature**2 * (inter_B + intra)


def wttm(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """U * KL(q || softmax(student)), q = p^(1/T) / U, U = sum of p^(1/T), p the teacher, in nats.

    Weighted transformed teacher matching (Zheng & Yang, ICLR 2024, arXiv:2402.11148): the teacher's power transform
    softens it, gamma = 1 / T; the student stays at temperature 1, so no T^2 is due. For T >= 1, U goes from 1
    (confident teacher) to C^(1 - 1/T): samples with an uncertain teacher weigh more. Targets are not read.

    Authors' README: CE + 4 * soft at gamma=0.2, so alpha=0.8 and T=5 (beside a second term; pairs differ).
    """
    powered_BC = F.log_softmax(teacher_BC.float(), dim=1) / settings.temperature
    return powered_BC.logsumexp(1).exp() * _kl(powered_BC, student_BC.float())


def mse(student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, settings: StudentConfig) -> Tensor:
    """Mean squared difference of logits over classes (Kim et al., IJCAI 2021, arXiv:2105.08919).

    Twice the limit of `kd` at high temperatures, except for the mean of the logits, which `kd` ignores. Needs no
    temperature; targets are not read. Authors' code: no labels, so alpha=1.
    """
    return F.mse_loss(student_BC.float(), teacher_BC.float(), reduction="none").mean(1)


SOFT_TERMS: Mapping[str, SoftTerm] = MappingProxyType(
    {"kd": kd, "logit_std": logit_std, "dkd": dkd, "dist": dist, "wttm": wttm, "mse": mse}
)
"""The soft terms by `kd_loss`; `none` has no soft term."""


def _with_teachers_class(target: Tensor, teacher_BC: Tensor, labelled_B: Tensor) -> Tensor:
    """`target`, with the teacher's most probable class for samples without a label."""
    class_B = teacher_BC.argmax(1)
    if target.ndim == 1:
        return torch.where(labelled_B, target, class_B)
    return torch.where(labelled_B[:, None], target, F.one_hot(class_B, target.shape[1]).to(target.dtype))


def _kl(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each sample [B]."""
    log_teacher_BC, log_student_BC = F.log_softmax(teacher_BC, dim=1), F.log_softmax(student_BC, dim=1)
    return F.kl_div(log_student_BC, log_teacher_BC, reduction="none", log_target=True).sum(1)


def _z_scores(logits_BC: Tensor) -> Tensor:
    variance_B1, mean_B1 = torch.var_mean(logits_BC.float(), dim=1, keepdim=True)
    return (logits_BC.float() - mean_B1) / (variance_B1 + 1e-8).sqrt()  # inside the root: finite gradient at 0


def _decoupled(student_BC: Tensor, teacher_BC: Tensor, class_B: Tensor, *, beta: float) -> Tensor:
    """TCKD + beta * NCKD of each sample [B] with target `class_B`, of logits that are already softened."""
    position = torch.arange(student_BC.shape[1] - 1, device=class_B.device)
    others = position + (position >= class_B[:, None])  # every class but the target, without a mask's GPU sync

    def split(logits_BC: Tensor) -> tuple[Tensor, Tensor]:
        rest = logits_BC.gather(1, others)
        return torch.cat([logits_BC.gather(1, class_B[:, None]), rest.logsumexp(1, keepdim=True)], dim=1), rest

    (student_B2, student_rest), (teacher_B2, teacher_rest) = split(student_BC), split(teacher_BC)
    return _kl(teacher_B2, student_B2) + beta * _kl(teacher_rest, student_rest)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of each row of `a` with that of `b`; 0 for a constant row."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)
