"""Networks that hand channels to other weights than a trace says are refused, with the layer's name; others are cut."""

import copy
import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import breaking_nets as nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.config.compression import PRUNING_CRITERIA, PruneConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.candidate.__main__ import main
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count
from trainables.stages.pruning import channels
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.cuts import write_plan
from trainables.stages.pruning.methods import prune

SIZE = 8
IMAGES = DatasetRecord(
    name="digits",
    folder=Path(),
    fingerprint="f" * 64,
    class_names=tuple("abcde"),
    image_size=SIZE,
    num_train=2,
    num_val=2,
    num_test=2,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def cut(model: nn.Module, *ignored: str) -> None:
    prune(model, method="structured", ratio=0.25, image_size=SIZE, num_classes=5, ignore=ignored)


def restored(dense: nn.Module, model: nn.Module) -> nn.Module:
    """The dense network that reads what the cut one reads, found by the values of its weights and no trace."""
    whole = copy.deepcopy(dense)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = whole.get_parameter(f"{name}.weight")
            rows = [_index(row, weight) for row in layer.weight]
            inputs = [_index(column, weight[rows].movedim(1, 0)) for column in layer.weight.movedim(1, 0)]
            with torch.no_grad():
                weight[:, sorted({*range(weight.shape[1])} - {*inputs})] = 0
        elif isinstance(layer, nn.LayerNorm):  # whose mean and variance are of the channels that are left
            left = [_index(value, whole.get_parameter(f"{name}.bias")) for value in layer.bias]
            whole.get_submodule(name).forward = partial(_norm_of, left, whole.get_submodule(name))
    return whole


def _index(part: Tensor, parts: Tensor) -> int:
    """The one among `parts` that holds all the values of `part`."""
    (found,) = (i for i, other in enumerate(parts) if bool(torch.isin(part.flatten()[:16], other).all()))
    return found


def _norm_of(left: list[int], norm: nn.LayerNorm, x: Tensor) -> Tensor:
    output = torch.zeros_like(x)
    output[..., left] = F.layer_norm(x[..., left], (len(left),), norm.weight[left], norm.bias[left])
    return output


def assert_same(model: nn.Module, dense: nn.Module) -> None:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), restored(dense, model).eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", nets.BROKEN, ids=lambda network: network.__name__)
def test_what_reorders_or_mixes_channels_is_refused_with_a_layer_that_can_be_left_whole(
    network: type[nets.Plain],
) -> None:
    ignored: list[str] = []
    with pytest.raises(ValueError, match=r"by its trace|than its trace says|after structured pruning"):
        cut(network())
    for _ in range(2):  # where weights are tied, two layers are to be left whole
        try:
            cut(model := network(), *ignored)
        except ValueError as error:
            named = re.search(
                r"(?:the channels|the cut) of (\w+)(?: reach .*|: )add it to prune_ignore='\1'", str(error)
            )
            assert named, error
            ignored.append(named[1])
        else:
            break
    cut(model := network(), *ignored)
    assert_same(model, network())
    assert any(width < 32 for name, width in widths(model).items() if name not in ("head", "third"))


@pytest.mark.parametrize("network", nets.UNKNOWN, ids=lambda network: network.__name__)
def test_layers_that_nobody_can_cut_are_refused_by_name(network: type[nets.Plain]) -> None:
    with pytest.raises(
        ValueError, match=r"handles Conv2d, .*but got (norm|first\.\w+\.weight|a model) of type \w+; take"
    ):
        cut(network())


@pytest.mark.parametrize("network", nets.SOUND, ids=lambda network: network.__name__)
def test_what_the_trace_follows_is_cut_and_computes_the_same(network: type[nets.Plain]) -> None:
    model = network()
    cut(model)
    assert_same(model, network())
    assert {name for name, width in widths(model).items() if width == widths(network())[name]} <= {
        "head",
        *network.whole,
    }


@pytest.mark.parametrize("network", [nets.Flipped, nets.Averaged, nets.Positions])
def test_the_comparison_of_these_tests_sees_a_wrong_cut(
    network: type[nets.Plain], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "check_equivalence", lambda *rest, **more: None)
    cut(model := network())
    with pytest.raises(AssertionError, match="not close"):
        assert_same(model, network())


@pytest.mark.parametrize("criterion", PRUNING_CRITERIA[:3])
def test_the_layer_is_named_whatever_chose_the_channels(criterion: str) -> None:
    batches = [(torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5)]
    with pytest.raises(ValueError, match="the channels of first reach other weights"):
        prune(
            nets.Positions(),
            method="structured",
            ratio=0.5,
            image_size=SIZE,
            num_classes=5,
            criterion=criterion,
            batches=lambda: batches,
        )


def test_a_shortcut_that_is_filled_up_with_zeros_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the channels of second reach weights that do not exist"):
        cut(nets.Padded())


def test_the_command_refuses_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = str(tmp_path / "runs"), str(tmp_path / "data")
    with pytest.raises(SystemExit) as end:
        main(["--dataset", "digits", "--student-model", "breaking_nets:Flipped", "--out", out, "--data-dir", data])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert "the channels of first reach other weights" in said
    assert "--prune-ignore 'first'" in said
    assert not (tmp_path / "runs" / "store" / "teacher").exists()


@pytest.mark.parametrize(
    ("network", "uncut", "unlike", "told"),
    [(nets.Masked, ["first"], [], "first kept all"), (nets.WideMaxout, [], ["first"], "first kept 32 of 64")],
)
def test_layers_that_cannot_be_cut_as_asked_for_are_recorded(
    network: type[nets.Plain],
    uncut: list[str],
    unlike: list[str],
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = network()
    dense, before = widths(model), count(model, SIZE)
    cut(model)
    config = PruneConfig(pruning_ratio=0.25)
    write_plan(model, before, config, IMAGES, tmp_path, dense=dense, channel_ratio=0.25)
    row = json.loads((tmp_path / "pruning.json").read_text())
    assert (row["uncut"], row["unlike"]) == (uncut, unlike)
    assert f"0.25 of every layer's channels had to go; {told}" in caplog.text


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v3_small"])
def test_rounding_is_not_told(name: str, ratio: float, tmp_path: Path) -> None:
    model = build_model(name, num_classes=5, image_size=32)
    dense, before = widths(model), count(model, 32)
    prune(model, method="structured", ratio=ratio, image_size=32, num_classes=5)
    config, images = PruneConfig(pruning_ratio=ratio), dataclasses.replace(IMAGES, image_size=32)
    write_plan(model, before, config, images, tmp_path, dense=dense, channel_ratio=ratio)
    assert json.loads((tmp_path / "pruning.json").read_text())["unlike"] == []
