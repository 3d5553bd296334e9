"""Networks of timm: named, fitted to classes and images, their weights from the cache of the Hugging Face hub."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.candidate.__main__ import main
from trainables.stages.models.attention import find_attentions, is_of_tokens
from trainables.stages.models.build import build_model, check_model, source_digest
from trainables.stages.models.weights import load_weights, save_weights
from trainables.stages.models.zoo.timm_zoo import names_weights
from trainables.stages.pruning.channels import widths
from trainables.stages.pruning.methods import prune
from trainables.stages.training.student import student_key
from trainables.stages.training.teacher import teacher_key

SIZE = 32


def lay_in_cache(hub: Path, repository: str, model: nn.Module) -> None:
    """What `hf download` leaves behind: a revision, and its files by revision."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "snapshots" / ("a" * 40) / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("resnet18", 7),
        ("mobilenetv3_small_050", 3),
        ("vit_tiny_patch16_224", 3),
        ("deit_tiny_distilled_patch16_224", 2),
    ],
)
def test_classes_and_small_images_are_fitted(name: str, classes: int) -> None:
    model = build_model(f"timm:{name}", num_classes=classes, image_size=SIZE).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, SIZE, SIZE)).shape == (2, classes)
        features = model.forward_features(torch.randn(2, 3, SIZE, SIZE))
    # a map of 4 x 4 as our other networks keep it, or 8 x 8 patches and the tokens beside them
    assert features.shape[1] in (65, 66) if features.ndim == 3 else features.shape[2:] == (4, 4)


def test_larger_images_keep_the_networks_own_stem() -> None:
    model = build_model("timm:resnet10t", num_classes=2, image_size=64)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in timm.create_model("resnet10t", num_classes=2).state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet81", r"has no 'resnet81'; did you mean timm:resnet18 or"),
        ("timm:resnet18.a9", r"'resnet18' has no weights of the tag 'a9'; it has a1_in1k, "),
        ("timm:mixer_s32_224.x", r"no weights of the tag 'x'; it has none; leave the tag out"),
        ("timm:hf-hub:me/pets", r"has no 'hf-hub:me/pets'"),
        ("timm:../nets", "Unknown model"),
    ],
)
def test_unknown_names_get_a_hint(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--teacher-model", "--student-model"])
def test_without_timm_the_fix_is_said_with_the_flag(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else there(name))
    with pytest.raises(SystemExit) as end:
        main(["--out", str(tmp_path), "--data-dir", str(tmp_path), flag, "timm:resnet18"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert f"{flag}: Model 'timm:resnet18' needs timm, which is not installed: pip install 'compression-sw" in told
    assert told.count("\n") == 1


OFFLINE = """
import sys, torch
from trainables.stages.models.build import build_model
from trainables.stages.models.inspection import count
for name, size in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        model = build_model(name, num_classes=5, image_size=int(size), pretrained=True)
        print(*(f"{float(p.detach().double().mean()):.6f}" for p in model.parameters() if p.ndim > 1 and len(p) != 5))
    except ValueError as error:
        print(error)
"""


def test_weights_come_from_the_hubs_cache_and_where_there_are_none_it_is_said(tmp_path: Path) -> None:
    """In a process of its own: the libraries read where their cache is when they are imported."""
    torch.manual_seed(0)
    names = {"mobilenetv3_small_050": "lamb_in1k", "vit_tiny_patch16_224": "augreg_in21k_ft_in1k"}
    there = {name: timm.create_model(name) for name in names}
    for name, tag in names.items():
        lay_in_cache(tmp_path / "hub", f"timm/{name}.{tag}", there[name])
    asked = [
        *("timm:mobilenetv3_small_050.lamb_in1k", "64", "timm:mobilenetv3_small_050", "64"),
        *("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "32"),
        *("timm:resnet18.a1_in1k", "64", "timm:mixer_s32_224", "64"),
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    tagged, default, resampled, absent, never = done.stdout.splitlines()
    own = [p for p in there["mobilenetv3_small_050"].parameters() if p.ndim > 1 and len(p) != 1000]
    assert tagged.split() == [f"{float(p.detach().double().mean()):.6f}" for p in own]
    assert default == tagged
    blocks = there["vit_tiny_patch16_224"].blocks
    assert f"{float(blocks[3].mlp.fc1.weight.detach().double().mean()):.6f}" in resampled.split()
    assert "Model 'timm:resnet18.a1_in1k': its weights are not in the Hugging Face cache (HF_HOME)" in absent
    assert "run `hf download timm/resnet18.a1_in1k model.safetensors` where there is a network" in absent
    assert "take timm:resnet18 without --pretrained" in absent
    assert never == "--pretrained: model 'timm:mixer_s32_224' has no weights on the Hugging Face hub; leave it out."


def test_keys_know_the_tag_and_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DatasetRecord(
        name="digits",
        folder=Path(),
        fingerprint="f" * 64,
        class_names=("a", "b"),
        image_size=SIZE,
        num_train=2,
        num_val=2,
        num_test=2,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    assert names_weights("timm:resnet18.a1_in1k") and not names_weights("timm:resnet18")
    assert not names_weights("my.nets:tiny")

    def keys() -> set[str]:
        found = set()
        for name in ("timm:resnet18", "timm:resnet18.a1_in1k", "timm:resnet18.a2_in1k", "resnet18"):
            for field in ("teacher_model", "student_model"):
                asked = CandidateConfig().replace(**{field: name}).resolve(data, device="cpu")
                parent = type("Teacher", (), {"key": "teacher/1"})()
                found.add(str(teacher_key(asked, data) if field[0] == "t" else student_key(asked, data, parent)))
        return found

    first = keys()
    assert len(first) == 8
    assert source_digest("timm:resnet18").startswith(f"timm {timm.__version__}")
    monkeypatch.setattr("trainables.stages.models.zoo.timm_zoo.version", lambda name: "9.9")
    assert len(keys() & first) == 2, "only those of torchvision's network are still the same"


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_heads_and_hidden_widths_of_a_transformer_are_cut(criterion: str, tmp_path: Path) -> None:
    """The cut network computes what the dense one does with the heads and hidden units that are left."""
    torch.manual_seed(0)
    dense = build_model("timm:vit_tiny_patch16_224", num_classes=4, image_size=SIZE)
    dense.blocks = dense.blocks[:2]
    model = copy.deepcopy(dense)
    images = torch.randn(4, 3, SIZE, SIZE)
    batch = images, torch.arange(4)
    halved = {"method": "structured", "ratio": 0.5, "criterion": criterion}
    prune(model, image_size=SIZE, num_classes=4, batches=lambda: [batch], **halved)
    left = widths(model)
    assert left["blocks.0.mlp.fc1"] == left["blocks.1.mlp.fc1"] == 384
    assert left["head"] == 4 and left["patch_embed.proj"] == 192
    heads = [block.num_heads for block in find_attentions(model).values()]
    assert sorted(heads) == [1, 2], "half of three heads, rounded both ways"
    with torch.no_grad():
        for name, block in find_attentions(dense).items():  # heads that went say nothing in the dense one
            kept = model.get_submodule(name).qkv.weight.view(3, -1, 64, 192)[2]
            for head, values in enumerate(block.qkv.weight.view(3, 3, 64, 192)[2]):
                if not any(torch.equal(values, one) for one in kept):
                    block.proj.weight[:, head * 64 : (head + 1) * 64] = 0
        for block, cut in zip(dense.blocks, model.blocks, strict=True):
            gone = [
                unit for unit, row in enumerate(block.mlp.fc1.weight) if not (row == cut.mlp.fc1.weight).all(1).any()
            ]
            assert len(gone) == 384
            block.mlp.fc2.weight[:, gone] = 0
        torch.testing.assert_close(model.eval()(images), dense.eval()(images), rtol=1e-4, atol=1e-4)

    save_weights(model, tmp_path / "weights.pt")
    again = build_model("timm:vit_tiny_patch16_224", num_classes=4, image_size=SIZE)
    again.blocks = again.blocks[:2]
    load_weights(again, tmp_path / "weights.pt")
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_a_head_that_may_not_go_is_kept() -> None:
    model = build_model("timm:vit_tiny_patch16_224", num_classes=4, image_size=SIZE)
    model.blocks = model.blocks[:2]
    prune(model, method="structured", ratio=0.6, image_size=SIZE, num_classes=4, ignore=("*.qkv", "blocks.1.mlp.fc1"))
    left = widths(model)
    assert left["blocks.0.attn.qkv"] == left["blocks.1.attn.qkv"] == 576
    assert (left["blocks.0.mlp.fc1"] < 400, left["blocks.1.mlp.fc1"]) == (True, 768)


def test_bn_scale_has_no_score_in_a_transformer() -> None:
    model = build_model("timm:test_vit", num_classes=4, image_size=SIZE)
    model.blocks = model.blocks[:1]
    with pytest.raises(ValueError, match="bn_scale needs BatchNorm"):
        prune(model, method="structured", ratio=0.5, image_size=SIZE, num_classes=4, criterion="bn_scale")


def test_heads_with_a_table_of_positions_are_not_cut() -> None:
    block = build_model("timm:swin_tiny_patch4_window7_224", num_classes=4, image_size=SIZE).layers[0]
    assert is_of_tokens(block)
    assert find_attentions(block) == {}
