import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

TRAIN = """
    import os, sys, time
    from pathlib import Path
    import torch
    from torch import nn
    from trainables.config.candidate import AugmentConfig
    from trainables.config.training import TrainingConfig
    from trainables.stages.data.on_device import Images
    from trainables.stages.training.lessons import Labels
    from trainables.stages.training.loop import Loop, train
    from trainables.store.results import Key, Store

    class Lesson(Labels):
        def open(self, view, turn):
            print("begins", view + 1, flush=True)
        def __call__(self, logits, batch):
            time.sleep(pause)
            return super().__call__(logits, batch)

    def compute(folder):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        images = torch.randint(0, 255, (48, 3, 8, 8), dtype=torch.uint8)
        labels, half = torch.arange(48) % 3, torch.full((1, 3, 1, 1), 0.5)
        images = Images(train_images=images[:32], train_labels=labels[:32], val_images=images[32:],
                        val_labels=labels[32:], mean=half, std=half, num_classes=3)
        loop = Loop(stage="student", epochs=5, learning_rate=1e-3,
                    training=TrainingConfig(batch_size=16), augment=AugmentConfig(crop_padding=1))
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        yield from train(model, loop, images, Lesson(0.0), folder)
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "record.json").write_text("{}")

    for name, pause in ("killed", 0.2), ("killed", 0.0), ("whole", 0.0):
        if (child := os.fork()) == 0:  # torch is imported once for three workers
            print("worker", os.getpid(), flush=True)
            for report in Store(Path(sys.argv[1]) / name).obtain(Key("student", "0" * 24), compute):
                print("stored", report.epoch, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
"""


def test_a_student_killed_in_mid_stage_repeats_no_stored_epoch(tmp_path: Path) -> None:
    import torch

    command = [sys.executable, "-c", textwrap.dedent(TRAIN), str(tmp_path)]
    workers: list[list[str]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            workers += [[]] if "worker" in line else []
            workers[-1].append(line.strip())
            if len(workers) == 1 and line == "begins 3\n":
                os.kill(int(workers[0][0].split()[1]), signal.SIGKILL)
    killed, second, _ = workers
    assert killed[1:] == ["begins 1", "stored 1", "begins 2", "stored 2", "begins 3"]
    assert [line for line in second if "begins" in line] == ["begins 3", "begins 4", "begins 5"]
    weights = [torch.load(tmp_path / name / "student" / ("0" * 24) / "weights.pt") for name in ("killed", "whole")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=0)
