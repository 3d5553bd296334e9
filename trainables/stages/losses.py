"""What a student is taught by.

Shape letters: B batch, C classes.
"""

import torch.nn.functional as F
from torch import Tensor


def soft_term(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, in nats.

    T^2 keeps the gradient's size independent of the temperature (arXiv:1503.02531, section 2). The mean is over
    samples (`batchmean`): dividing by classes as well would make the term C times too small.

    Args:
        student_BC: logits [B, C]; computed in float32 whatever comes in.
        teacher_BC: logits [B, C], no gradient.
        temperature: > 0.
    """
    log_student_BC = F.log_softmax(student_BC.float() / temperature, dim=1)
    log_teacher_BC = F.log_softmax(teacher_BC.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student_BC, log_teacher_BC, reduction="batchmean", log_target=True)


def hard_term(student_BC: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy with the labels, mean over the batch, in nats.

    Args:
        student_BC: logits [B, C].
        target: class indices [B] or probabilities [B, C] (Mixup).
        label_smoothing: share of the label mass spread over all classes, in [0, 1).
    """
    return F.cross_entropy(student_BC.float(), target, label_smoothing=label_smoothing)


def kd_loss(
    student_BC: Tensor, teacher_BC: Tensor, target: Tensor, *, temperature: float, alpha: float, label_smoothing: float
) -> Tensor:
    """(1 - alpha) * CE(labels) + alpha * T^2 * KL(teacher || student), in nats (Hinton, arXiv:1503.02531).

    `alpha` weighs the soft, teacher term (RepDistiller's convention; torchdistill's is the opposite). alpha=0 is
    cross-entropy, alpha=1 learns from the teacher alone; nothing jumps in between.
    """
    hard = hard_term(student_BC, target, label_smoothing=label_smoothing)
    return (1 - alpha) * hard + alpha * soft_term(student_BC, teacher_BC, temperature=temperature)
