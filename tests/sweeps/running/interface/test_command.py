"""Networks that a command refuses before anything is trained."""

from pathlib import Path

import pytest

from sweeps.kd_prune import main

NETS = """
from torch import nn

class Flip(nn.Module):
    def forward(self, x):
        return x.flip(1)

def flipped(num_classes):
    body = [nn.Conv2d(3, 32, 3, padding=1), Flip(), nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, num_classes))
"""


def test_a_network_whose_channels_cannot_be_followed_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_that_flip.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    out, data = str(tmp_path / "runs"), str(tmp_path / "data")
    students = ["--student-model", "alexnet_small,nets_that_flip:flipped"]
    with pytest.raises(SystemExit) as end:
        main(["--preset", "quick", *students, "--out", out, "--data-dir", data])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "--student-model nets_that_flip:flipped" in said
    assert "the channels of 0 reach other weights" in said
    assert not (tmp_path / "runs" / "store" / "teacher").exists()
