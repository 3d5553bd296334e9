"""The whole chain in one process, by its command line."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.trainables.stages.measuring.latencies import latency, measured
from trainables.config.candidate import CandidateConfig, MeasureConfig
from trainables.config.limits import Limits
from trainables.records.stages import ShapeRecord
from trainables.stages.candidate.__main__ import main
from trainables.stages.candidate.chain import make_candidate
from trainables.stages.export.session import open_session, run_logits
from trainables.stages.measuring import beside_teacher, untrained_shape
from trainables.stages.measuring.beside_teacher import shape_digest
from trainables.stages.measuring.process import Measured
from trainables.stages.measuring.untrained_shape import BISECTIONS, solve
from trainables.stages.training.teacher import train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Store

TINY = [  # one attempt: two workers of CI disturb each other, and no test here asks for an undisturbed latency
    *["--latency-max-attempts", "1"],
    *["--dataset", "digits", "--no-flip", "--train-limit", "120", "--batch-size", "32"],
    *["--teacher-model", "alexnet", "--student-model", "alexnet_small", "--threads", "1"],
    *["--teacher-epochs", "1", "--student-epochs", "1", "--recovery-epochs", "1", "--latency-seconds", "0.1"],
]

HOOKED = """
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def make(*, num_classes):
    first = weight_norm(nn.Conv2d(3, 16, 3, padding=1))
    first.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 0.5,))
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Linear(256, num_classes))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("candidate")
    return ["--out", str(root / "runs"), "--data-dir", str(root / "data")]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, float], str]:
    assert main(words) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out.partition("files:")[0]), shown.err


def steady(metrics: dict[str, float]) -> dict[str, float]:
    """All but what the clock says: a latency that was not clean is measured anew when it is found."""
    return {name: value for name, value in metrics.items() if "latency" not in name and "throughput" not in name}


def test_a_candidate_is_made_once_and_shares_its_stages_with_the_next(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, told = run([*TINY, *folders, "--pruning-ratio", "0.5"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["teacher", "shape", "student", "recovery"]
    assert 0 <= first["test_accuracy"] <= 1
    assert first["num_params"] < 400_000 < 763_306  # half of the channels leave about a quarter of the parameters
    assert first["reused_time_s"] == 0

    again, told = run([*TINY, *folders, "--pruning-ratio", "0.5"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape"]
    assert {**steady(again), "reused_time_s": 0.0} == steady(first)
    if first["latency_clean"]:
        assert again["latency_p50_ms"] == first["latency_p50_ms"]
        assert again["latency_alone_s"] < first["latency_alone_s"]  # no more than a shape that was not clean, again
    assert first["latency_alone_s"] > 0
    assert again["reused_time_s"] > 0

    zeroed, told = run([*TINY, *folders, "--pruning-method", "l1_unstructured", "--pruning-ratio", "0.5"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape", "recovery"]
    assert zeroed["num_params"] == 763_306
    assert zeroed["num_nonzero_params"] < zeroed["num_params"]


def test_the_teacher_is_a_student_without_epochs_of_its_own_and_uncut_without_any(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    itself = [*TINY, *folders, "--student-model", "teacher"]
    run([*TINY, *folders, "--pruning-ratio", "0.5"], capsys)  # trains the teacher, if this test comes first
    uncut, told = run([*itself, "--pruning-ratio", "0"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape"]
    assert (uncut["train_time_s"], uncut["achieved_macs_ratio"]) == (0, 0)
    assert uncut["latency_alone_s"] == 0  # its file is the teacher's, which has been timed
    assert uncut["latency_p50_ms"] == uncut["reference_latency_p50_ms"]

    small, told = run([*itself, "--pruning-ratio", "0.5"], capsys)
    # the student's epoch is not lost: it follows the cut, too
    assert [line.split()[:2] for line in told.splitlines()[1:]] == [["recovery", "1/2"], ["recovery", "2/2"]]
    assert 0.7 < small["achieved_macs_ratio"] < 0.8
    assert small["num_params"] < 0.3 * uncut["num_params"]

    other, told = run([*itself, "--pruning-ratio", "0.5", "--student-epochs", "0", "--recovery-epochs", "2"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape"]  # another spelling of the same candidate
    assert {**steady(other), "reused_time_s": 0.0} == {**steady(small), "reused_time_s": 0.0}
    _, told = run([*itself, "--pruning-ratio", "0.5", "--temperature", "5"], capsys)
    assert len(told.splitlines()) == 3  # another lesson is another network


def make_unlabeled(folder: Path) -> None:
    """40 digits as files."""
    for i, image in enumerate(load_digits().images[:40]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{i}.png")


def test_the_teacher_is_the_same_with_images_without_labels_and_where_nobody_teaches_there_are_none(
    tmp_path: Path,
) -> None:
    make_unlabeled(tmp_path)
    quick = {"train_limit": 120, "teacher_model": "alexnet", "teacher_epochs": 1, "crop_padding": 2}
    teachers = []
    for name, more in (("without", {}), ("with", {"unlabeled": str(tmp_path)})):
        config = CandidateConfig().replace(dataset="digits", **quick, **more)
        place = Workspace(
            store=Store(tmp_path / name),
            data=config.data,
            data_dir=tmp_path / "data",
            device="cpu",
            threads=1,
            lock_dir=tmp_path / name,
        )
        bench, silent = (
            Bench.of(one.resolve(place.dataset(), device="cpu"), place) for one in (config, config.replace(alpha=0.0))
        )
        assert (bench.images.unlabeled, silent.images.unlabeled) == (40 if more else 0, 0)
        epochs = train_teacher(bench)
        next(epochs)
        with pytest.raises(StopIteration) as end:
            next(epochs)
        teachers.append(end.value.value)
    assert teachers[0].key == teachers[1].key
    one, other = (torch.load(teacher.folder / "weights.pt", weights_only=True) for teacher in teachers)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_without_labels_are_for_students_in_all_their_stages_and_not_for_the_teacher(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_unlabeled(tmp_path)
    plain = [*TINY, *folders, "--pruning-ratio", "0.5"]
    words = [*plain, "--unlabeled", str(tmp_path)]
    run(plain, capsys)  # trains the teacher, if this test comes first
    store = Path(folders[1]) / "store"
    banks = set(store.glob("soft_labels/*/logits.npy"))
    for more, stages in (
        (["--precision", "int8_qat"], ["shape", "student", "recovery", "qat"]),
        (["--student-model", "teacher"], ["shape", "recovery", "recovery"]),
    ):
        _, told = run([*words, *more], capsys)
        assert [line.split()[0] for line in told.splitlines()] == stages
    new = set(store.glob("soft_labels/*/logits.npy")) - banks
    assert {len(np.load(file)) for file in new} == {120 + 40}
    assert len(new) == 2  # a view each for student and recovery; qat has the first, the teacher as the student both


@pytest.mark.parametrize("normalize", ["imagenet", "dataset"])
def test_a_given_network_computes_in_its_file_what_it_computed_where_it_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, normalize: str
) -> None:
    """If its normalisation is given, that of torchvision here; otherwise it is another network."""
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\ndef big(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    net = importlib.import_module("nets_of_mine").big(10)
    torch.save(net.state_dict(), tmp_path / "big.pt")
    words = [
        "--teacher-model",
        "nets_of_mine:big",
        "--teacher-weights",
        str(tmp_path / "big.pt"),
        "--teacher-epochs",
        "0",
    ]
    words += ["--student-model", "teacher", "--pruning-ratio", "0", "--normalize", normalize]
    words += ["--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data"), "--dataset", "digits"]
    assert main([*words, "--latency-seconds", "0.1", "--latency-max-attempts", "1"]) == 0
    folder = Path(capsys.readouterr().out.partition("files: ")[2].strip())
    pixels = torch.rand(4, 3, 32, 32)
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = net.eval()((pixels - mean) / std)
    found = run_logits(open_session(folder / "model.onnx", 1), pixels.numpy())
    assert np.allclose(found, expected, atol=1e-4) == (normalize == "imagenet")


@pytest.mark.parametrize(
    ("limits", "timed"), [(Limits(max_size_mb=1.0), (0.5, 3)), (Limits(max_latency_ms=1.0), (2.0, 3))]
)
def test_a_shape_is_timed_shortly_where_no_limit_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits, timed: tuple[float, int]
) -> None:
    asked: list[tuple[float, int]] = []

    def time_beside(measure: MeasureConfig, *_: object, **__: object) -> Measured:
        asked.append((measure.latency_seconds, measure.latency_max_attempts))
        return measured(latency(1.0))

    monkeypatch.setattr(beside_teacher, "time_beside", time_beside)
    monkeypatch.setattr(untrained_shape, "time_beside", time_beside)
    quick = {"train_limit": 120, "teacher_model": "alexnet", "teacher_epochs": 1, "crop_padding": 2}
    config = CandidateConfig().replace(dataset="digits", latency_seconds=2.0, latency_max_attempts=3, **quick)
    place = Workspace(
        store=Store(tmp_path), data=config.data, data_dir=tmp_path, device="cpu", threads=1, lock_dir=tmp_path
    )
    steps = make_candidate(config.resolve(place.dataset(), device="cpu"), place, limits)
    assert any(isinstance(step, ShapeRecord) for step in steps)
    assert asked == [(2.0, 3), timed]  # the teacher's own comes first


@pytest.mark.parametrize(("what", "metric"), [("macs", "macs"), ("size", "size_bytes")])
def test_pruning_by_macs_or_size_finds_the_channels(
    folders: list[str], capsys: pytest.CaptureFixture[str], what: str, metric: str
) -> None:
    dense, _ = run([*TINY, *folders, "--pruning-ratio", "0"], capsys)
    found, _ = run([*TINY, *folders, "--pruning-of", what, "--pruning-ratio", "0.6"], capsys)
    assert 0.25 * dense[metric] < found[metric] <= 0.4 * dense[metric]


def test_a_candidate_of_enlarged_images_is_calibrated_and_judged_by_them(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image-size", "48", "--pruning-criterion", "taylor", "--precision", "int8_ptq"]
    words += ["--train-limit", "700", "--alpha", "0", "--learning-rate", "3e-3", "--student-epochs", "5"]
    found, _ = run([*TINY, *folders, *words], capsys)
    assert found["parity_agreement"] > 0.9
    assert found["test_accuracy"] > 0.4


@pytest.mark.parametrize("target", [0.9, 0.5, 0.1])
def test_a_ratio_is_found_by_bisection(target: float) -> None:
    ratio = solve(lambda ratio: (1 - ratio) ** 2, target)
    assert (1 - ratio) ** 2 <= target < (1 - (ratio - 2.0**-BISECTIONS)) ** 2


def test_a_share_that_no_ratio_leaves_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no channel ratio leaves a share of 0\.1: the narrowest model still has 0\.2"
    ):
        solve(lambda ratio: max(0.2, 1 - ratio), 0.1)


def test_lower_precisions_are_made_of_the_same_student(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(folders[1]) / "store"
    others = set(store.glob("*/*/model.onnx"))
    words = [*TINY, *folders, "--pruning-ratio", "0.5"]
    plain, _ = run(words, capsys)
    for precision, share, trained in (("fp16", 0.55, []), ("int8_ptq", 0.35, []), ("int8_qat", 0.35, ["qat"])):
        found, told = run([*words, "--precision", precision], capsys)
        assert [line.split()[0] for line in told.splitlines()] == ["shape", *trained]
        assert found["size_bytes"] < share * plain["size_bytes"]
        assert found["parity_max_abs"] > 0
        assert found["parity_agreement"] > 0.8
        assert found["num_params"] == plain["num_params"]
        assert found["reference_latency_p50_ms"] > 0
    # Whatever the weights, a file has the shape that was measured before training.
    known = {json.loads(path.read_text())["shape"] for path in store.glob("shape/*/record.json")}
    files = {shape_digest(path) for path in set(store.glob("*/*/model.onnx")) - others if path.stat().st_size < 10e6}
    assert len(files) >= 3
    assert files <= known
    again, told = run([*words, "--precision", "int8_qat"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape"]
    assert again["val_accuracy"] == found["val_accuracy"]


def test_a_network_with_hooks_and_parametrized_weights_can_be_trained_for_int8(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooked_net.py").write_text(HOOKED)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*TINY, *folders, "--student-model", "hooked_net:make", "--pruning-ratio", "0"]
    plain, _ = run(words, capsys)
    found, told = run([*words, "--precision", "int8_qat"], capsys)
    assert [line.split()[0] for line in told.splitlines()] == ["shape", "qat"]
    assert found["num_params"] == plain["num_params"]
    assert found["parity_agreement"] > 0.8


def test_cuts_in_steps_and_over_the_whole_network(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *folders, "--pruning-ratio", "0.5", "--recovery-epochs", "3"]
    once, _ = run(words, capsys)
    steps, told = run([*words, "--pruning-steps", "2"], capsys)
    epochs = [line.split()[1] for line in told.splitlines() if line.startswith("recovery")]
    assert epochs == ["1/3", "2/3", "3/3"]
    assert steps["num_params"] == once["num_params"]

    ranked = ["--pruning-scope", "global", "--pruning-criterion", "taylor"]
    over_all, told = run([*words, *ranked], capsys)
    # an estimate first, then what the trained student's cut leaves
    assert [line.split()[0] for line in told.splitlines()] == ["shape", "shape", *["recovery"] * 3]
    macs = [float(line.split()[-3]) for line in told.splitlines() if line.startswith("shape")]
    assert macs[1] == pytest.approx(over_all["macs"] / 1e6, abs=0.06) != macs[0]
    assert over_all["num_params"] < 0.75 * 763_306
    store = Path(folders[1]) / "store" / "recovery"
    plans = [json.loads(file.read_text()) for file in store.glob("*/pruning.json")]
    (plan,) = (plan for plan in plans if plan["num_params"] == over_all["num_params"])
    assert plan["macs"] == over_all["macs"]
    assert plan["achieved_params_ratio"] == pytest.approx(1 - over_all["num_params"] / 763_306)
    assert all(width > 0 for width in plan["channels"].values())
    assert not list(store.glob("*/cut*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--alpha", "2"], "--alpha 2.0"),
        (["--threads", "0"], "--threads 0"),
        (["--device", "tpu"], "tpu"),
        (["--student-model", "alexnet_smal"], "alexnet_small"),
        (["--dataset", "digit"], "--dataset digit"),
        (["--unlabeled", "nowhere"], "--unlabeled nowhere: no such folder"),
        (["--unlabeled", "nowhere", "--kd-loss", "none"], "--unlabeled nowhere and --kd-loss none: only a teacher"),
        (["--pruning-of", "weight"], "--pruning-of 'weight'"),
        (["--latency-runtime", "onnx"], "--latency-runtime 'onnx'"),
        (["--latency-runtime", "tensorrt"], "--latency-runtime tensorrt: "),
        (["--precision", "int4"], "--precision 'int4'"),
        (["--pruning-scope", "global", "--pruning-of", "macs"], "--pruning-scope 'global'"),
    ],
)
def test_bad_input_is_one_line(
    folders: list[str], capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*TINY, *folders, *words])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert named in told
