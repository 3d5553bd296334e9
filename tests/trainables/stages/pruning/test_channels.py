import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count
from trainables.stages.pruning.allocation import LEAST_GLOBAL, rounded
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.criteria import add_gradients
from trainables.stages.pruning.methods import prune

SIZE = 8


def chain(first: int = 64, second: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU()),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(second, 5),
    )


def batches() -> Iterable[tuple[Tensor, Tensor]]:
    yield torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5


def cut(model: nn.Module, ratio: float, **options: object) -> None:
    prune(model, method="structured", ratio=ratio, image_size=SIZE, num_classes=5, **options)


@pytest.mark.parametrize(
    ("keep", "width", "expected"),
    [
        (44.8, 64, 48),
        (32.0, 64, 32),
        (1.0, 64, 8),
        (12.6, 18, 12),
        (1.0, 18, 4),
        (5.6, 8, 6),
        (0.2, 8, 1),
        (35, 35, 32),
    ],
)
def test_rounding_to_8(keep: float, width: int, expected: int) -> None:
    assert rounded(keep, width) == expected


def test_lamp_by_hand() -> None:
    """Squares 1, 4 and 16 in one layer: 1/21, 4/20 and 16/16. A layer of large weights is no safer than another."""
    import torch_pruning

    scores = torch.tensor([4.0, 1.0, 16.0])
    assert torch_pruning.importance.LAMPImportance()._lamp(scores).tolist() == pytest.approx([4 / 20, 1 / 21, 1.0])


def test_lamp_in_one_layer_is_magnitude() -> None:
    by_lamp, by_magnitude = chain(), chain()
    cut(by_lamp, 0.5, criterion="lamp")
    cut(by_magnitude, 0.5)
    assert torch.equal(by_lamp[0].weight, by_magnitude[0].weight)


def test_bn_scale_keeps_the_channels_of_large_gamma() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.1, 1, 64))
    strong = model[0].weight[32:].detach().clone()
    cut(model, 0.5, criterion="bn_scale")
    assert torch.equal(model[0].weight, strong)
    assert model[3].out_channels == 64  # no BatchNorm, no score


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_bn_scale_without_batchnorm_is_an_error(scope: str) -> None:
    model = build_model("alexnet_small", num_classes=5, image_size=16)
    with pytest.raises(ValueError, match="bn_scale needs BatchNorm"):
        prune(model, method="structured", ratio=0.5, image_size=16, num_classes=5, criterion="bn_scale", scope=scope)


def test_taylor_removes_what_the_loss_does_not_feel() -> None:
    model = chain()
    with torch.no_grad():
        model[7].weight[:, ::2] = 0  # half of the second convolution reaches no logit
        model[3].weight[::2] *= 100  # and would win by magnitude
    felt = model[3].weight[1::2].detach().clone()
    cut(model, 0.5, criterion="taylor", batches=batches)
    assert model[3].out_channels == 32
    assert model[3].weight.shape[1] == 32
    assert all(any(torch.isin(kept, row).all() for row in felt) for kept in model[3].weight)


def test_taylor_is_the_same_every_time_and_leaves_statistics_alone() -> None:
    one, other = chain().train(), chain().train()
    for model in (one, other):
        cut(model, 0.5, criterion="taylor", batches=batches)
    assert torch.equal(one[3].weight, other[3].weight)
    assert one[1].running_mean.eq(0).all()
    assert one.training
    assert all(parameter.grad is None for parameter in one.parameters())


def test_taylor_needs_images() -> None:
    with pytest.raises(ValueError, match="'taylor' needs labelled images for its gradients, but got 0"):
        cut(chain(), 0.5, criterion="taylor")


def test_gradients_are_those_of_the_mean_loss() -> None:
    model = chain()
    add_gradients(model, batches)
    got = model[7].weight.grad
    pixels, labels = next(iter(batches()))
    model.zero_grad()
    nn.functional.cross_entropy(model.eval()(pixels), labels).backward()
    assert got is not None
    torch.testing.assert_close(got, model[7].weight.grad)


def test_global_scope_takes_the_worst_of_the_network_and_empties_no_layer() -> None:
    model = chain()
    with torch.no_grad():
        model[0].weight[8:] *= 1e-3
        model[1].weight[8:] *= 1e-3
        model[3].weight[:, 8:] *= 1e-3
    cut(model, 0.5, scope="global")
    assert widths(model) == {"0": 8, "3": 56, "7": 5}  # 64 of 128: 56 of the weak layer, 8 of the other
    weak = chain()
    cut(weak, 0.9, scope="global")
    assert all(width >= LEAST_GLOBAL * 64 for name, width in widths(weak).items() if name != "7")


def test_many_cuts_end_where_one_does() -> None:
    at_once, stepwise = chain(72, 40), chain(72, 40)
    cut(at_once, 0.6)
    for step in (1, 2, 3):
        cut(stepwise, 0.2 * step, dense={"0": 72, "3": 40})
    assert widths(stepwise) == widths(at_once) == {"0": 32, "3": 16, "7": 5}


def test_a_plan_gives_another_networks_widths() -> None:
    model, copied = chain(), chain()
    with torch.no_grad():
        model[3].weight[:48] *= 0.1
    cut(model, 0.5, scope="global")
    cut(copied, 0.5, plan=widths(model))
    assert widths(copied) == widths(model) != {"0": 32, "3": 32, "7": 5}


@pytest.mark.parametrize(("name", "value"), [("criterion", "l2"), ("scope", "block")])
def test_unknown_words(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .*, but got {name}='{value}'"):
        cut(chain(), 0.5, **{name: value})


def test_taylor_scores_the_gates_after_batchnorm() -> None:
    """A channel that BatchNorm barely lets through goes first, however large its convolution's weights are."""
    model = chain()
    with torch.no_grad():
        model[1].weight[:32] = 1e-7
        model[1].bias[:32] = 0
        model[0].weight[:32] *= 100
    let_through = model[0].weight[32:].detach().clone()
    cut(model, 0.5, criterion="taylor", batches=batches)
    assert torch.equal(model[0].weight, let_through)


def test_close_ratios_are_different_networks() -> None:
    """No layer is rounded at the same ratio as all others of its width, so that any share of the MACs can be had."""
    dense = build_model("resnet20", num_classes=5, image_size=16)
    _, _, all_macs = count(dense, 16)
    shares = []
    for ratio in (0.36, 0.38, 0.4, 0.42, 0.44):
        model = copy.deepcopy(dense)
        prune(model, method="structured", ratio=ratio, image_size=16, num_classes=5)
        shares.append(count(model, 16)[2] / all_macs)
    assert shares == sorted(set(shares), reverse=True)
    assert max(wide - narrow for wide, narrow in itertools.pairwise(shares)) < 0.12


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_exact_ratios_are_exact(ratio: float) -> None:
    model = build_model("resnet20", num_classes=5, image_size=16)
    before = widths(model)
    prune(model, method="structured", ratio=ratio, image_size=16, num_classes=5)
    after = widths(model)
    assert all(after[name] == (1 - ratio) * before[name] for name in before if name != list(before)[-1])


def test_sensitivity_spares_what_the_answers_need() -> None:
    """Nobody reads most of the second convolution: it is cut, the first one is not, and as much work is left."""
    model = chain()
    with torch.no_grad():
        model[7].weight[:, 8:] = 0
        model[3].weight[:8] *= 10
    uniform, sensible = copy.deepcopy(model), model
    cut(uniform, 0.5)
    cut(sensible, 0.5, scope="sensitivity", batches=batches)
    assert widths(uniform) == {"0": 32, "3": 32, "7": 5}
    assert widths(sensible) == {"0": 64, "3": 8, "7": 5}
    assert 0.5 * count(uniform, SIZE)[2] < count(sensible, SIZE)[2] < 1.1 * count(uniform, SIZE)[2]


def test_sensitivity_leaves_the_weights_that_it_keeps_alone() -> None:
    model = chain()
    dense = copy.deepcopy(model)
    cut(model, 0.3, scope="sensitivity", batches=batches)
    rows = dense[0].weight.detach()
    assert all(any(torch.equal(kept, row) for row in rows) for kept in model[0].weight.detach())


def test_sensitivity_needs_images() -> None:
    with pytest.raises(ValueError, match="'sensitivity' needs images to measure harm on, but got 0"):
        cut(chain(), 0.5, scope="sensitivity")


@pytest.mark.parametrize("layer", [nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)])
def test_layers_of_other_kinds_are_refused_by_name(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match=f"but got 1 of type {type(layer).__name__}; take") as caught:
        cut(net, 0.5)
    assert "tensor(" not in str(caught.value)


class Odd(nn.Module):
    """A chain whose forward does something to its input first."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.chain, self.what = chain(), what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "writes":
            x -= 0.5
            return self.chain(x)
        return self.chain(x) + float("nan")


def test_a_forward_that_writes_into_its_input_is_pruned() -> None:
    cut(odd := Odd("writes"), 0.5)
    assert widths(odd)["chain.0"] == 32


def test_nan_after_a_cut_is_called_nan() -> None:
    with pytest.raises(ValueError, match="nan or inf"):
        cut(Odd("nan"), 0.5)
