import copy
import os
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from trainables.stages.models.build import MODEL_NAMES, build_model, check_model
from trainables.stages.models.inspection import count, evaluating, recalibrate_bn
from trainables.stages.models.zoo import torchvision_zoo


def _users_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("image_size", [32, 64])
def test_logits_have_one_column_a_class(name: str, image_size: int) -> None:
    model = build_model(name, num_classes=7, image_size=image_size)
    with torch.no_grad():
        assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("image_size", [16, 17, 96])
def test_small_alexnet_takes_any_size_from_16(image_size: int) -> None:
    model = build_model("alexnet_small", num_classes=3, image_size=image_size)
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 3)


def test_macs_by_hand() -> None:
    # out elements x in / groups x kernel area: 8*4*4 * 3*9, 8*4*4 * 1*9, 16*4*4 * 4*1, then 256 -> 5
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1, groups=2),
        nn.Flatten(),
        nn.Linear(256, 5),
    )
    macs = 128 * 27 + 128 * 9 + 256 * 4 + 256 * 5
    params = (8 * 27 + 8) + (8 * 9 + 8) + (16 * 4 + 16) + (256 * 5 + 5)
    assert count(model, 8) == (params, params, macs)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [  # by hand; ResNet-8's MACs are those of MLPerf Tiny's
        ("resnet8", 78_042, 12_501_632),
        ("resnet20", 272_474, 40_813_184),
        ("resnet56", 855_770, 125_747_840),
    ],
)
def test_resnets_for_cifar_are_those_of_the_paper(name: str, params: int, macs: int) -> None:
    assert count(build_model(name, num_classes=10, image_size=32), 32)[::2] == (params, macs)


def test_zero_weights_are_not_counted_as_nonzero() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    nn.init.ones_(model[1].weight)
    with torch.no_grad():
        model[1].weight[0] = 0
    assert count(model, 2) == (24, 12, 24)


@pytest.mark.parametrize(
    ("name", "image_size", "params_m", "macs_m", "tolerance"),
    [  # published or measured elsewhere, with normalisation and activations in the MACs: hence the tolerance
        ("resnet18", 32, 11.17, 557.2, 0.005),
        ("mobilenet_v3_small", 32, 1.53, 18.6, 0.07),
        ("mobilenet_v3_small", 224, 1.53, 59.1, 0.07),
        ("alexnet", 224, 57.0, 711.5, 0.005),
        ("alexnet", 32, 4.36, 43.8, 0.005),
        ("alexnet_small", 32, 0.763, 10.74, 0.005),
    ],
)
def test_params_and_macs(name: str, image_size: int, params_m: float, macs_m: float, tolerance: float) -> None:
    num_params, _, macs = count(build_model(name, num_classes=10, image_size=image_size), image_size)
    assert num_params / 1e6 == pytest.approx(params_m, rel=0.005)
    assert macs / 1e6 == pytest.approx(macs_m, rel=tolerance)


def test_batchnorm_momentum_of_mobilenet_is_a_tenth() -> None:
    model = build_model("mobilenet_v3_small", num_classes=10, image_size=32)
    assert {layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_any_torchvision_classifier(name: str) -> None:
    model = build_model(name, num_classes=4, image_size=64)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_unknown_model_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'resnet81'.*Did you mean resnet8 or resnet18"):
        check_model("resnet81")


def test_image_too_small_for_the_model() -> None:
    with pytest.raises(ValueError, match="'vgg11' fails on one image of image_size=16"):
        build_model("vgg11", num_classes=2, image_size=16)


def test_users_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\ndef tiny(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear("
    _users_module(tmp_path, monkeypatch, "users_nets", text + "num_classes))\n")
    check_model("users_nets:tiny")
    assert build_model("users_nets:tiny", num_classes=6, image_size=8)(torch.zeros(2, 3, 8, 8)).shape == (2, 6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:tiny", r"cannot import 'no_such_package.nets' \(ModuleNotFoundError"),
        ("users_bad_nets:absent", "'users_bad_nets' has no function 'absent'"),
        ("users_bad_nets:raises", "the function raised KeyError: 'depth'"),
        ("users_bad_nets:a_list", "must return a torch.nn.Module, but got list"),
        ("users_bad_nets:wide", r"logits of shape \(1, 5\) for an image, but got \(1, 6\)"),
        ("users_bad_nets:breaks", "fails on one image of image_size=8: RuntimeError"),
    ],
)
def test_users_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    text = """
from torch import nn
def raises(num_classes): return {}["depth"]
def a_list(num_classes): return [num_classes]
def wide(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes + 1))
def breaks(num_classes): return nn.Linear(5, num_classes)
"""
    _users_module(tmp_path, monkeypatch, "users_bad_nets", text)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, num_classes=5, image_size=8)
    assert "\n" not in str(caught.value)


def test_pretrained_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    message = rf"--pretrained: .*'resnet18'.*put the file resnet18-\w+\.pth into {tmp_path / 'checkpoints'}"
    with pytest.raises(ValueError, match=message):
        build_model("resnet18", num_classes=10, image_size=32, pretrained=True)


def test_pretrained_keeps_the_body_and_replaces_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    model = build_model("resnet18", num_classes=10, image_size=32, pretrained=True)
    assert model.get_parameter("fc.weight").shape == (10, 512)
    assert torch.equal(model.get_parameter("layer4.1.conv2.weight"), weights["layer4.1.conv2.weight"])
    assert torch.equal(model.get_parameter("conv1.weight"), weights["conv1.weight"][:, :, 2:5, 2:5])


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


def test_pretrained_files_run_nothing_and_are_what_their_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    torch.save({"fc.weight": Hostile(tmp_path / "ran")}, file)
    with pytest.raises(ValueError, match=rf"--pretrained: {file} is damaged, or another file: .*f37072fd"):
        build_model("resnet18", num_classes=10, image_size=32, pretrained=True)
    monkeypatch.setattr(torchvision_zoo, "sha256", lambda path: "f37072fd" + 56 * "0")
    with pytest.raises(ValueError, match=rf"--pretrained: {file} holds more than weights"):
        build_model("resnet18", num_classes=10, image_size=32, pretrained=True)
    assert not (tmp_path / "ran").exists()
    assert torchvision_zoo.SAFE_LOAD not in os.environ


@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_own_variants_have_no_pretrained_weights(name: str) -> None:
    with pytest.raises(ValueError, match=f"no weights exist for model '{name}' at image_size=32"):
        build_model(name, num_classes=10, image_size=32, pretrained=True)


def test_recalibration_is_the_plain_average_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01), nn.Dropout(0.5))
    batches = [torch.randn(4, 3, 5, 5) * 3 + 2 for _ in range(3)]
    recalibrate_bn(model, iter(batches))
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(model[0].running_mean, means)
    torch.testing.assert_close(model[0].running_var, variances)
    assert model[0].momentum == 0.01
    assert model.training
    assert model[0].training


def test_recalibration_changes_nothing_else() -> None:
    model = build_model("mobilenet_v3_small", num_classes=3, image_size=32).eval()
    before = copy.deepcopy(model.state_dict())
    recalibrate_bn(model, [torch.randn(8, 3, 32, 32)])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    assert not any(module.training for module in model.modules())


def test_recalibration_without_batchnorm_draws_no_batch() -> None:
    def never() -> torch.Tensor:
        raise AssertionError("drawn")

    recalibrate_bn(nn.Linear(2, 2), (never() for _ in range(1)))


def test_recalibration_needs_a_batch() -> None:
    model = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match=r"`batches` must hold at least one batch.*batches=0"):
        recalibrate_bn(model, [])


def test_evaluating_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval()).train()
    model[1].eval()
    with evaluating(model):
        assert not model.training
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_cifar_alexnet_fits_noise_in_a_few_steps(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, image_size=16)
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with evaluating(model), torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.9
