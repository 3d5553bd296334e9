"""A network's training pass as graphs: fewer calls, the same bits, and networks that must not be captured."""

import null_device
import pytest
import torch
from setups import AUGMENTS, BATCH, CUDA, make_images
from torch import Tensor, nn

from trainables.config.training import TrainingConfig
from trainables.stages.models.build import build_model
from trainables.stages.training.lessons import Labels
from trainables.stages.training.loop import Loop, Trainer


def make_trainer(network: nn.Module, *, graphs: bool, precision: str = "fp32") -> Trainer:
    training = TrainingConfig(batch_size=BATCH, train_precision=precision)
    loop = Loop(stage="student", epochs=3, learning_rate=1e-2, training=training, augment=AUGMENTS["padded"])
    return Trainer(network, loop, make_images(32, 32, streamed=False), Labels(0.1), graphs=graphs)


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=10, image_size=32)


@pytest.mark.parametrize(("name", "precision"), [("resnet8", "fp32"), ("resnet8", "amp"), ("alexnet_small", "fp32")])
def test_graphs_give_the_bits_of_single_kernels(name: str, precision: str) -> None:
    weights: list[dict[str, Tensor]] = []
    curves = []
    for graphs in (False, True):
        with null_device.computing():
            network = make_network(name)
            trainer = make_trainer(network, graphs=graphs, precision=precision)
            assert (trainer._whole_batch is not network) == graphs
            curves.append([trainer.epoch(epoch).train_loss for epoch in (1, 2)])
            weights.append({name: value.cpu() for name, value in network.state_dict().items()})
    assert curves[0] == curves[1] and curves[0][0] != curves[0][1]
    for parameter, value in weights[0].items():
        assert torch.equal(weights[1][parameter], value), parameter


def test_a_step_is_a_fraction_of_the_calls() -> None:
    calls = []
    for graphs in (False, True):
        trainer = make_trainer(make_network("mobilenet_v3_small"), graphs=graphs, precision="amp")
        trainer.learn(1)
        before = null_device.counts()
        trainer.learn(2)
        asked = null_device.since(before)
        calls.append(sum(asked.get(name, 0) for name in ("launch", "blas", "dnn", "memset", "d2d", "graph_launch")))
        assert ("graph_launch" in asked) == graphs
    assert calls[1] < 0.6 * calls[0], "three of four steps are replayed; the last batch is smaller"


class Asking(nn.Module):
    """Waits for a value in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1) / (1.0 + float(images.abs().sum().item() > 0)))


def test_a_network_that_cannot_be_captured_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = Asking()
    trainer = make_trainer(network, graphs=True)
    assert trainer._whole_batch is network
    assert "graphs: Asking cannot be captured" in caplog.text
    trainer.learn(1)  # the device works on


def test_what_was_captured_leaves_no_trace_in_the_network() -> None:
    with null_device.computing():
        network = make_network("resnet8")
        before = {name: value.clone() for name, value in network.state_dict().items()}
        make_trainer(network, graphs=True)
    assert network.training and next(network.parameters()).device == CUDA
    for name, value in network.state_dict().items():
        assert torch.equal(value.cpu(), before[name]), name
