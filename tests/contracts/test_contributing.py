"""What CONTRIBUTING.md says is so: the building is the one that is tested, and its diffs add what they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.contracts.test_rooms import LINES, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
USE = """
import numpy as np
import torch
from pathlib import Path
from trainables.config.candidate import CandidateConfig
from trainables.stages.data import prepared
from trainables.stages.models.build import build_model
from trainables.stages.pruning.methods import prune
from trainables.stages.runtimes.base import RUNTIMES
from trainables.stages.runtimes.onnx_runtimes import find_missing_provider
from trainables.stages.training.losses import distillation_loss

assert Path(prepared.__file__).is_relative_to(Path.cwd()), "not the copy"

model = build_model("resnet8", num_classes=4, image_size=32)
settings = CandidateConfig().replace(pruning_criterion="l1", kd_loss="mae", alpha=1.0)
criterion = settings.prune.pruning_criterion
told = prune(model, method="structured", ratio=0.5, image_size=32, num_classes=4, criterion=criterion)
assert told.achieved_params_ratio > 0.5

student, teacher = torch.zeros(2, 4), torch.tensor([[1.0, -1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
loss = distillation_loss(student, teacher, torch.tensor([0, 1]), settings=settings.student, label_smoothing=0.0)
assert loss.item() == 1.0  # the means are 1.5 and 0.5
assert settings.student.inert() >= {"temperature"}

assert RUNTIMES["coreml"].source == "onnx"
missing = find_missing_provider("coreml")
assert not missing or "has no CoreMLExecutionProvider" in missing  # macOS has it

rng = np.random.default_rng(0)
images = {f"{part}_images": rng.integers(0, 256, (20, 28, 28, 3), dtype=np.uint8) for part in ("train", "test")}
labels = {f"{part}_labels": np.arange(20) % 2 for part in ("train", "test")}
Path("data").mkdir()
np.savez("data/scans.npz", class_names=np.array(["day", "night"]), **images, **labels)
seen = prepared.prepare(settings.replace(dataset="scans").data, Path("data"))
assert (seen.class_names, seen.image_size) == (("day", "night"), 28)
assert (seen.num_train + seen.num_val, seen.num_test) == (20, 20)
"""


def apply(diff: str, root: Path) -> None:
    """Change the files below a folder as a diff says; each of its hunks must fit one place."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        for hunk in re.split(r"^@@\n", body, flags=re.MULTILINE):
            lines = hunk.splitlines()
            before, after = ("\n".join(line[1:] for line in lines if line[:1] != other) for other in "+-")
            text = (root / name).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{name}: no longer as CONTRIBUTING.md has it:\n{before}"
            (root / name).write_text(text.replace(before, after), encoding="utf-8")


def test_the_building_is_the_one_that_is_tested() -> None:
    assert re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)[1].split() == LINES.split()


def test_each_diff_adds_what_it_says(tmp_path: Path) -> None:
    assert len(DIFFS) == 4
    shutil.copytree(ROOT / "trainables", tmp_path / "trainables", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        assert sum(line[:1] == "+" for line in diff.splitlines()) <= 10
        apply(diff, tmp_path)
    script = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'){USE}"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
