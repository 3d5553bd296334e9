"""A network that cannot be trained or exported is refused by the line of its code, before anything is trained."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainables.stages.candidate.networks import check_network

DATASET = SimpleNamespace(
    num_classes=3, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("a", "b", "c"), num_val=4
)
NET = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def end(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    def forward(self, x):
        BODY
"""


def net_of(body: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(NET.replace("BODY", body.replace("\n", "\n        ")))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:Net"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = self.end(x)\nreturn (y, y) if self.training else y", "must return logits of shape .* in training.*tuple"),
        ("y = self.end(x)\nreturn y + self.aux(x) if self.training else y", "fails in training: AttributeError.*aux"),
        ("if self.training:\n    sys.exit(0)\nreturn self.end(x)", "fails in training: SystemExit: 0, in line 17 of"),
        ("if x.mean() > 0:\n    x = 2 * x\nreturn self.end(x)", r"exported: .* in line 16: if x.mean\(\) > 0"),
        (
            "y = torch.relu(self.conv(x)).mean((2, 3))\nreturn self.head(y.view(int(x.shape[0]), 4))",
            r"exported: .* in line 17: return self.head\(y.view\(int",
        ),
    ],
)
def test_refused_with_the_line(body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = net_of(body, "odd", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=said) as caught:
        check_network(name, DATASET, opset=18)
    assert "\n" not in str(caught.value)


def test_a_forward_that_writes_into_its_input_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_network(net_of("x -= 0.5\nreturn self.end(x)", "writes", tmp_path, monkeypatch), DATASET, opset=18)
