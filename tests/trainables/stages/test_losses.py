import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.stages.losses import hard_term, kd_loss, soft_term


def logits(seed: int, samples: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def test_soft_term_is_zero_for_equal_logits() -> None:
    assert soft_term(logits(0), logits(0), temperature=4.0).item() == pytest.approx(0, abs=1e-6)


def test_soft_term_ignores_a_constant_added_to_all_logits() -> None:
    a, b = logits(0), logits(1)
    assert soft_term(a + 5, b - 3, temperature=2.0).item() == pytest.approx(soft_term(a, b, temperature=2.0).item())


def test_soft_term_by_hand_for_two_classes() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = 1 / (1 + math.exp(-1))  # softmax(2 / T, 0) at T = 2
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert soft_term(student, teacher, temperature=2.0).item() == pytest.approx(4 * kl, rel=1e-5)


def test_soft_term_does_not_shrink_with_the_number_of_samples() -> None:
    a, b = logits(0), logits(1)
    twice = soft_term(a.repeat(2, 1), b.repeat(2, 1), temperature=3.0)
    assert twice.item() == pytest.approx(soft_term(a, b, temperature=3.0).item())


def test_gradient_keeps_its_size_at_high_temperature() -> None:
    """T^2 cancels the 1/T^2 of the gradient (arXiv:1503.02531, section 2): towards (teacher - student) / C."""
    student = logits(0).requires_grad_()
    teacher = logits(1)
    (gradient,) = torch.autograd.grad(soft_term(student, teacher, temperature=1000.0), student)
    centred = (student - teacher) - (student - teacher).mean(1, keepdim=True)
    torch.testing.assert_close(gradient, (centred / (4 * 6)).detach(), rtol=2e-2, atol=1e-4)


def test_alpha_0_is_cross_entropy_and_alpha_1_the_teacher_alone() -> None:
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0, 1])
    common = {"temperature": 4.0, "label_smoothing": 0.05}
    torch.testing.assert_close(
        kd_loss(student, teacher, labels, alpha=0.0, **common), F.cross_entropy(student, labels, label_smoothing=0.05)
    )
    torch.testing.assert_close(
        kd_loss(student, teacher, labels, alpha=1.0, **common), soft_term(student, teacher, temperature=4.0)
    )


@given(alpha=st.floats(0, 1), temperature=st.floats(0.5, 16))
@settings(max_examples=50, deadline=None)
def test_loss_is_a_straight_line_in_alpha_without_jumps_at_its_ends(alpha: float, temperature: float) -> None:
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0, 1])

    def at(value: float) -> float:
        loss = kd_loss(student, teacher, labels, temperature=temperature, alpha=value, label_smoothing=0.0)
        return loss.item()

    assert at(alpha) == pytest.approx((1 - alpha) * at(0.0) + alpha * at(1.0), rel=1e-4, abs=1e-5)


def test_hard_term_takes_mixed_labels() -> None:
    student, labels = logits(0), torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(
        hard_term(student, one_hot, label_smoothing=0.1), hard_term(student, labels, label_smoothing=0.1)
    )


def test_half_precision_logits_are_computed_in_float32() -> None:
    a, b = logits(0), logits(1)
    full = soft_term(a, b, temperature=16.0)
    assert soft_term(a.half(), b.half(), temperature=16.0).dtype == torch.float32
    torch.testing.assert_close(soft_term(a.half(), b.half(), temperature=16.0), full, rtol=2e-2, atol=1e-3)
