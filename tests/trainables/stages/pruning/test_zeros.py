from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainables.stages.pruning.methods import masks, prune, zero_globally, zero_two_of_four
from trainables.stages.training.stage import apply_masks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    )


def test_two_of_four_by_hand() -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.5, -0.1, 9.0]])
    zero_two_of_four(layer)
    assert layer.weight.tolist() == [[0.0, -4.0, 3.0, 0.0, 0.0, 0.5, 0.0, 9.0]]


def test_two_of_every_four_inputs_are_zero_and_other_layers_are_left_alone() -> None:
    model = network()
    first, bias = model[0].weight.clone(), model[2].bias.clone()
    prune(model, method="nm_2_4", ratio=0.3, image_size=8, num_classes=5)
    assert torch.equal(model[0].weight, first)  # three inputs
    assert torch.equal(model[2].bias, bias)
    # of each output channel and position, neighbours along the inputs: what sparse tensor cores ask for
    fours = model[2].weight.permute(0, 2, 3, 1).reshape(-1, 4)
    assert ((fours == 0).sum(dim=1) == 2).all()
    assert ((model[6].weight.reshape(-1, 4) == 0).sum(dim=1) == 2).all()
    assert set(masks(model, "nm_2_4")) == {"2.weight", "6.weight"}


def test_l1_global_zeroes_the_smallest_weights_wherever_they_are() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    before = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    linear = model[6].weight.clone()
    summary = prune(model, method="l1_global", ratio=0.4, image_size=8, num_classes=5)
    after = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    zero = after == 0
    assert int(zero.sum()) == round(0.4 * len(before))
    assert before[zero].abs().max() <= before[~zero].abs().min()
    assert torch.equal(after[~zero], before[~zero])
    assert (model[0].weight == 0).all()  # a layer of small weights goes whole: the risk of ranking together
    assert torch.equal(model[6].weight, linear)
    assert summary.sparsity == pytest.approx(0.4, abs=1e-3)
    assert set(masks(model, "l1_global")) == {"0.weight", "2.weight"}


def test_l1_global_of_equal_weights_zeroes_no_more_than_asked_for() -> None:
    model = nn.Conv2d(3, 4, 1, bias=False)
    nn.init.ones_(model.weight)
    zero_globally(model, 0.5)
    assert int((model.weight == 0).sum()) == 6


def test_what_removes_channels_has_no_masks() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 0
    assert masks(model, "structured") == {}


def test_masks_keep_the_pattern_through_training() -> None:
    model = network()
    zero_two_of_four(model)
    kept = masks(model, "nm_2_4")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    apply_masks(model, kept)
    assert all(torch.equal(model.get_parameter(name) == 0, zero) for name, zero in kept.items())


def test_two_of_four_where_no_layer_has_four_inputs_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 49, 5))
    with pytest.raises(ValueError, match=r"method='nm_2_4' and ratio=0.5 removed nothing"):
        prune(model, method="nm_2_4", ratio=0.5, image_size=7, num_classes=5)


@pytest.mark.parametrize("method", ["nm_2_4", "l1_unstructured", "l1_global"])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_computed_weights_are_refused_because_they_keep_no_zeros(method: str, norm: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(ValueError, match="weight of 0 is computed from others"):
        prune(model, method=method, ratio=0.5, image_size=8, num_classes=5)
