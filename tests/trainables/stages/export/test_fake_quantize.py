import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trainables.stages.export.fake_quantize import FakeInput, FakeWeight, insert, remove
from trainables.stages.export.scheme import Scheme

UNSIGNED = Scheme(activation="uint8", symmetric=False, reduce_range=False)
SIGNED = Scheme(activation="int8", symmetric=True, reduce_range=False)
SEVEN_BITS = Scheme(activation="uint8", symmetric=False, reduce_range=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    )


def test_weights_are_rounded_to_their_channels_own_steps() -> None:
    weight = torch.tensor([[1.27, 0.014, -0.016], [127.0, 1.4, -1.6]]).view(2, 3, 1, 1)
    rounded = FakeWeight(UNSIGNED)(weight)
    assert rounded.flatten(1).tolist() == [pytest.approx([1.27, 0.01, -0.02]), pytest.approx([127.0, 1.0, -2.0])]


@pytest.mark.parametrize(("scheme", "values"), [(UNSIGNED, 255), (SEVEN_BITS, 129)])
def test_how_many_values_a_weight_has(scheme: Scheme, values: int) -> None:
    weight = torch.linspace(-1, 1, 10_001).view(1, -1)
    assert len(FakeWeight(scheme)(weight).unique()) == values


def test_folding_batchnorm_leaves_the_integers() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([0.1, 3.0, 1.0, 40.0]).view(4, 1, 1, 1)
    torch.testing.assert_close(FakeWeight(UNSIGNED)(weight * factor), FakeWeight(UNSIGNED)(weight) * factor)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", [UNSIGNED, SIGNED])
def test_inputs_keep_zero_and_learn_their_range_while_training(scheme: Scheme, device: str) -> None:
    fake = FakeInput(scheme).train().to(device)
    values = torch.linspace(-1, 3, 9, device=device)
    seen = fake(values)
    assert (fake.low.item(), fake.high.item()) == (-1.0, 3.0)
    assert seen[2] == 0  # padding is exact
    torch.testing.assert_close(seen, values, atol=0.02, rtol=0)
    fake(torch.tensor([-1.0, 13.0], device=device))
    assert fake.high.item() == pytest.approx(3 + 0.05 * 10)
    fake.eval()(torch.tensor([100.0], device=device))
    assert fake.high.item() == pytest.approx(3.5)
    assert fake(torch.tensor([100.0], device=device)).item() == pytest.approx(3.5, abs=0.05)


def test_gradients_pass_straight_through_inside_the_range() -> None:
    fake = FakeInput(UNSIGNED).train()
    fake(torch.tensor([-1.0, 1.0]))
    values = torch.tensor([0.3, 5.0], requires_grad=True)
    fake.eval()(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]


def test_inserting_and_removing_leaves_the_network_as_it_was() -> None:
    model, images = network().eval(), torch.randn(4, 3, 8, 8)
    state, before = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(images)
    inserted = insert(model, UNSIGNED)
    model.train()(images).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None
    model.eval()
    assert 0 < (model(images) - before).abs().max() < 0.5
    remove(model, inserted)
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items() if "running" not in n and "num" not in n)


def with_hooks() -> nn.Sequential:
    """A network with a hook of its own, and normalised weights of torch's newer and older kind."""
    model = network()
    model[0].register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))
    parametrizations.weight_norm(model[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older kind is deprecated, and in use
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 1)), *model)


def test_a_networks_own_hooks_and_normalised_weights_survive() -> None:
    model, images = with_hooks().eval(), torch.randn(4, 3, 8, 8)
    before = model(images)
    inserted = insert(model, UNSIGNED)
    rounded = model.train()(images)
    for layer in (model[0], model[6]):
        steps = layer.weight / layer.weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (layer.weight.ndim - 1)) * 127
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    rounded.sum().backward()
    assert model[0].weight_g.grad is not None
    assert model[6].parametrizations.weight.original0.grad is not None
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert (model.eval()(images) - before).abs().max() > 0
    remove(model, inserted)
    untouched = with_hooks().eval()
    untouched.load_state_dict(model.state_dict())
    assert torch.equal(model(images), untouched(images))
    assert not torch.equal(model(images), before), "it was trained"


def test_nothing_to_quantise_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a Conv2d or Linear layer, but the network has none"):
        insert(nn.Sequential(nn.Flatten(), nn.ReLU()), UNSIGNED)
