import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.config.candidate import KD_LOSSES, StudentConfig
from trainables.stages.training import losses
from trainables.stages.training.losses import SOFT_TERMS, distillation_loss, hard_term

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
MIXED = 0.7 * F.one_hot(LABELS, 4) + 0.3 * F.one_hot(LABELS.flip(0), 4)
STUDENT_23 = np.array([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]])
TEACHER_23 = np.array([[1.0, -2.0, 3.0], [-1.0, 2.5, 0.5]])
TARGET_2 = [2, 0]


def logits(seed: int, samples: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def soft_term(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    return losses.soft_term(student, teacher, temperature=temperature).mean()


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


def config(name: str = "kd", **changes: float) -> StudentConfig:
    return StudentConfig(kd_loss=name, **changes)


def soft(name: str, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor = LABELS, **changes: float):
    return SOFT_TERMS[name](student, teacher, target, settings=config(name, **changes)).mean()


def softmax(logits_BC: np.ndarray) -> np.ndarray:
    e = np.exp(logits_BC)
    return e / e.sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of each row, by the definition."""
    return (p * np.log(p / q)).sum(1)


def kd_by_hand(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    return t**2 * kl(softmax(teacher / t), softmax(student / t)).mean()


def logit_std_by_hand(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    def z(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True)

    return kd_by_hand(z(student), z(teacher), t)


def dkd_by_hand(student: np.ndarray, teacher: np.ndarray, t: float, *, beta: float = 3.0) -> float:
    total = 0.0
    for s_row, t_row, k in zip(softmax(student / t), softmax(teacher / t), TARGET_2, strict=True):
        p, q = t_row[k], s_row[k]
        target_part = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        rest_p, rest_q = np.delete(t_row, k) / (1 - p), np.delete(s_row, k) / (1 - q)
        total += target_part + beta * (rest_p * np.log(rest_p / rest_q)).sum()
    return t**2 * total / len(student)


def dist_by_hand(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    p, q = softmax(teacher / t), softmax(student / t)
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(p.shape[0])])
    intra = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])])
    return t**2 * (inter + intra)


def wttm_by_hand(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    powered = softmax(teacher) ** (1 / t)
    u = powered.sum(1)
    return (u * kl(powered / u[:, None], softmax(student))).mean()


def mse_by_hand(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    return ((student - teacher) ** 2).mean()


BY_HAND = {
    "kd": kd_by_hand,
    "logit_std": logit_std_by_hand,
    "dkd": dkd_by_hand,
    "dist": dist_by_hand,
    "wttm": wttm_by_hand,
    "mse": mse_by_hand,
}


def test_every_loss_has_a_soft_term_but_none() -> None:
    assert set(SOFT_TERMS) | {"none"} == set(KD_LOSSES)
    assert set(BY_HAND) == set(SOFT_TERMS)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", SOFT_TERMS)
def test_two_samples_of_three_classes_by_hand(name: str, temperature: float) -> None:
    student, teacher = torch.tensor(STUDENT_23), torch.tensor(TEACHER_23)
    value = soft(name, student, teacher, torch.tensor(TARGET_2), temperature=temperature, dkd_beta=3.0)
    assert value.item() == pytest.approx(BY_HAND[name](STUDENT_23, TEACHER_23, temperature), rel=1e-5)


@pytest.mark.parametrize("target", [LABELS, MIXED], ids=["labels", "mixup"])
@pytest.mark.parametrize("name", SOFT_TERMS)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name: str, target: torch.Tensor) -> None:
    """At T=1, where wttm asks for the teacher's own probabilities; the others at any temperature."""
    student = logits(0).requires_grad_()
    loss = soft(name, student, logits(0), target, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_wttm_is_least_for_a_student_of_the_softened_teacher() -> None:
    teacher = logits(1)
    assert soft("wttm", teacher / 4, teacher, temperature=4.0).item() == pytest.approx(0, abs=1e-6)
    assert soft("wttm", teacher, teacher, temperature=4.0).item() > 0.01


@pytest.mark.parametrize("target", [LABELS, MIXED], ids=["labels", "mixup"])
@pytest.mark.parametrize("name", SOFT_TERMS)
def test_no_term_is_negative_and_its_gradient_leads_down(name: str, target: torch.Tensor) -> None:
    student = logits(0).requires_grad_()
    before = soft(name, student, logits(1), target)
    (gradient,) = torch.autograd.grad(before, student)
    after = soft(name, student - 1e-2 * gradient, logits(1), target)
    assert 0 <= after.item() < before.item()


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOFT_TERMS)
def test_half_precision_gives_a_float32_loss_and_a_finite_gradient(name: str, dtype: torch.dtype, scale: float) -> None:
    """Of constant logits and of sure, wrong students too."""
    student = (scale * logits(0)).to(dtype).requires_grad_()
    loss = soft(name, student, (scale * logits(1)).to(dtype), temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in SOFT_TERMS if name != "dist"])
def test_a_batch_is_the_mean_of_its_samples(name: str) -> None:
    """But for dist, whose intra term compares the samples of a batch."""
    alone = [soft(name, logits(0)[i : i + 1], logits(1)[i : i + 1], LABELS[i : i + 1]) for i in range(6)]
    assert soft(name, logits(0), logits(1)).item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


@given(scale=st.floats(0.1, 50), shift=st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_logit_std_is_blind_to_scale_and_shift_of_either_side(scale: float, shift: float) -> None:
    expected = soft("logit_std", logits(0), logits(1)).item()
    assert soft("logit_std", scale * logits(0) + shift, logits(1)).item() == pytest.approx(expected, rel=1e-3)
    assert soft("logit_std", logits(0), scale * logits(1) + shift).item() == pytest.approx(expected, rel=1e-3)


def test_dist_is_blind_to_scale_and_shift_of_the_probabilities() -> None:
    """A student of probabilities a * p + (1 - a) / C correlates fully with a teacher of p."""
    teacher = logits(1)
    for share in (0.9, 0.5, 0.05):
        student = (share * F.softmax(teacher, dim=1) + (1 - share) / 4).log()
        assert soft("dist", student, teacher, temperature=1.0).item() == pytest.approx(0, abs=1e-5)
        assert soft("kd", student, teacher, temperature=1.0).item() > 1e-4


@pytest.mark.parametrize("name", [name for name in SOFT_TERMS if name != "mse"])
def test_a_constant_added_to_all_logits_changes_nothing_but_mse(name: str) -> None:
    expected = soft(name, logits(0), logits(1)).item()
    assert soft(name, logits(0) + 5, logits(1) - 3).item() == pytest.approx(expected, rel=1e-4)


def test_dkd_of_weights_one_and_one_minus_p_is_kd() -> None:
    """The decomposition that the paper starts from (arXiv:2203.08679, equation 7), sample by sample."""
    for i, label in enumerate(LABELS.tolist()):
        student, teacher = logits(0)[i : i + 1], logits(1)[i : i + 1]
        others = 1 - F.softmax(teacher / 3, dim=1)[0, label].item()
        split = soft("dkd", student, teacher, LABELS[i : i + 1], temperature=3.0, dkd_beta=others)
        assert split.item() == pytest.approx(soft_term(student, teacher, temperature=3.0).item(), rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 8.0])
def test_dkd_of_two_classes_is_kd(beta: float) -> None:
    student, teacher, labels = logits(0, classes=2), logits(1, classes=2), LABELS % 2
    expected = soft_term(student, teacher, temperature=StudentConfig.temperature).item()
    assert soft("dkd", student, teacher, labels, dkd_beta=beta).item() == pytest.approx(expected, rel=1e-4)
    mixed = 0.6 * F.one_hot(labels, 2) + 0.4 * F.one_hot(1 - labels, 2)
    assert soft("dkd", student, teacher, mixed, dkd_beta=beta).item() == pytest.approx(expected, rel=1e-4)


def test_dkd_of_mixed_labels_is_the_mixture_of_both_labels_terms() -> None:
    one, other = (soft("dkd", logits(0), logits(1), labels) for labels in (LABELS, LABELS.flip(0)))
    mixed = soft("dkd", logits(0), logits(1), MIXED)
    assert mixed.item() == pytest.approx(0.7 * one.item() + 0.3 * other.item(), rel=1e-4)


@pytest.mark.parametrize("name", SOFT_TERMS)
def test_one_hot_probabilities_are_labels(name: str) -> None:
    torch.testing.assert_close(
        soft(name, logits(0), logits(1), F.one_hot(LABELS, 4).float()), soft(name, logits(0), logits(1))
    )


def test_logit_std_of_two_classes_leaves_the_teaching_to_the_labels() -> None:
    student = logits(0, classes=2).requires_grad_()
    (gradient,) = torch.autograd.grad(soft("logit_std", student, logits(1, classes=2)), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_wttm_listens_more_where_the_teacher_is_unsure() -> None:
    student = torch.zeros(1, 4)
    sure, unsure = torch.tensor([[20.0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]])
    for teacher, weight in ((sure, 1.0), (unsure, 4**0.75)):
        ratio = soft("wttm", student, teacher, temperature=4.0) / F.kl_div(
            F.log_softmax(student, 1), F.log_softmax(teacher / 4, 1), reduction="batchmean", log_target=True
        )
        assert ratio.item() == pytest.approx(weight, rel=0.1)


@pytest.mark.parametrize("name", SOFT_TERMS)
def test_alpha_0_is_cross_entropy_and_alpha_1_the_teacher_alone(name: str) -> None:
    student, teacher = logits(0), logits(1)
    labels_only = F.cross_entropy(student, LABELS, label_smoothing=0.05)
    for settings_, expected in (
        (config(name, alpha=0.0), labels_only),
        (config("none"), labels_only),
        (config(name, alpha=1.0), soft(name, student, teacher)),
    ):
        loss = distillation_loss(student, teacher, LABELS, settings=settings_, label_smoothing=0.05)
        torch.testing.assert_close(loss, expected)


@given(name=st.sampled_from(sorted(SOFT_TERMS)), alpha=st.floats(0, 1), temperature=st.floats(0.5, 16))
@settings(max_examples=100, deadline=None)
def test_loss_is_a_straight_line_in_alpha_without_jumps_at_its_ends(
    name: str, alpha: float, temperature: float
) -> None:
    def at(value: float) -> float:
        settings_ = config(name, alpha=value, temperature=temperature)
        return distillation_loss(logits(0), logits(1), MIXED, settings=settings_, label_smoothing=0.0).item()

    assert at(alpha) == pytest.approx((1 - alpha) * at(0.0) + alpha * at(1.0), rel=1e-4, abs=1e-5)
    assert at(1e-9) == pytest.approx(at(0.0), rel=1e-5)


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


LABELLED = torch.tensor([True, False, True, False, False, True])


def gradient(target: torch.Tensor, settings_: StudentConfig, labelled: torch.Tensor | None) -> torch.Tensor:
    """Of each sample's logits."""
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, logits(1), target, settings=settings_, label_smoothing=0.1, labelled_B=labelled)
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("target", [LABELS, MIXED], ids=["labels", "mixup"])
@pytest.mark.parametrize("name", [name for name in SOFT_TERMS if name != "dist"])
def test_a_sample_without_a_label_learns_as_at_alpha_1_and_its_neighbours_as_ever(
    name: str, target: torch.Tensor
) -> None:
    """But for dist, whose intra term compares the samples of a batch. dkd's target is then the teacher's class."""
    found = gradient(target, config(name, alpha=0.4), LABELLED)
    from_teacher = gradient(logits(1).argmax(1), config(name, alpha=1.0), None)
    torch.testing.assert_close(found[~LABELLED], from_teacher[~LABELLED])
    torch.testing.assert_close(found[LABELLED], gradient(target, config(name, alpha=0.4), None)[LABELLED])


@pytest.mark.parametrize("target", [LABELS, MIXED], ids=["labels", "mixup"])
@pytest.mark.parametrize("name", SOFT_TERMS)
def test_a_batch_without_labels_is_alpha_1_and_one_with_all_of_them_the_plain_loss(
    name: str, target: torch.Tensor
) -> None:
    settings_ = config(name, alpha=0.4)
    nobody, all_ = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    from_teacher = gradient(logits(1).argmax(1), config(name, alpha=1.0), None)
    torch.testing.assert_close(gradient(target, settings_, nobody), from_teacher)
    torch.testing.assert_close(gradient(target, settings_, all_), gradient(target, settings_, None))


@pytest.mark.parametrize("name", SOFT_TERMS)
def test_what_stands_in_place_of_a_missing_label_is_not_read(name: str) -> None:
    other = torch.where(LABELLED, LABELS, (LABELS + 1) % 4)
    settings_ = config(name, alpha=0.4)
    assert torch.equal(gradient(LABELS, settings_, LABELLED), gradient(other, settings_, LABELLED))


def test_the_intra_term_of_dist_has_the_mean_weight_of_its_samples() -> None:
    """inter is weighed by sample: what is left of the loss beside it and the labels is intra."""
    student, teacher, weight = F.softmax(logits(0), 1).numpy(), F.softmax(logits(1), 1).numpy(), np.full(6, 0.4)
    weight[~LABELLED.numpy()] = 1
    inter = np.mean([w * (1 - np.corrcoef(s, t)[0, 1]) for s, t, w in zip(student, teacher, weight, strict=True)])
    intra = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in zip(student.T, teacher.T, strict=True)])
    found = torch.tensor(weight) * SOFT_TERMS["dist"](
        logits(0), logits(1), LABELS, settings=config("dist", temperature=1.0)
    )
    assert found.mean().item() == pytest.approx(inter + weight.mean() * intra, rel=1e-5)
