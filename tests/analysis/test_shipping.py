import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from onnx import TensorProto, helper
from PIL import Image, UnidentifiedImageError

from analysis.__main__ import main
from analysis.shipping import PREDICT, stated_in
from tests.analysis.conftest import log_sweep, teacher_rows, trial_rows
from tests.trainables.stages.data.sample_folders import POSTSCRIPT, fake_ghostscript
from trainables.stages.data.decoding import FORMATS, to_array

__all__ = ["fake_ghostscript"]

SIZE = 8
CLASSES = ["dark red", "<img src=x onerror=alert(1)> $(touch ran) ../../x", "grün"]


def linear_model(path: Path, *, metadata: bool = True) -> Path:
    """Logits are the channels' means: the class of an image is its strongest channel."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["image", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "means", [image], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata:
        helper.set_model_props(model, {"class_names": json.dumps(CLASSES), "image_size": json.dumps(SIZE)})
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose trials carry a real ONNX file."""
    folder = tmp_path_factory.mktemp("runs")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("colours", artifact_location=(folder / "artifacts").as_uri())
    log_sweep(client, experiment, "night", [*trial_rows(4), teacher_rows()])
    model = linear_model(folder / "model.onnx")
    for run in client.search_runs([experiment], "tags.kind = 'trial'"):
        client.log_artifact(run.info.run_id, str(model))
    return folder


def images(folder: Path) -> list[Path]:
    """Non-square images of every mode that cameras and scanners write."""
    rng = np.random.default_rng(0)
    paths = []
    kinds = {"png": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16"), "jpg": ("RGB", "L", "CMYK"), "webp": ("RGB",)}
    for number, (kind, mode) in enumerate((kind, mode) for kind, modes in kinds.items() for mode in modes):
        width, height = int(rng.integers(9, 40)), int(rng.integers(9, 40))
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA").convert(mode)
        path = folder / f"{number}-{mode.replace(';', '')}.{kind}"
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        image.save(path, **({"exif": exif} if kind == "jpg" else {}))
        paths.append(path)
    big = folder / "big.jpg"  # large enough that the decoder scales it down
    Image.fromarray(rng.integers(0, 256, (300, 211, 3), dtype=np.uint8)).save(big)
    return [*paths, big]


def test_predict_prepares_images_bit_for_bit_as_they_were_in_training(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(PREDICT.partition("here = ")[0], names)
    for path in images(tmp_path):
        with Image.open(path) as image:
            expected = to_array(image, SIZE).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(names["pixels"](path, SIZE)[0], expected, err_msg=path.name)


def test_the_shipped_folder_names_the_class_of_an_image_without_our_code(out: Path, tmp_path: Path, capsys) -> None:
    ship = tmp_path / "ship"
    assert main(["export", "night@balanced", "--to", str(ship), "--out", str(out)]) == 0
    assert "3 classes, images of 8 x 8 pixels" in capsys.readouterr().out
    assert {path.name for path in ship.iterdir()} == {
        *("model.onnx", "preprocessing.json", "labels.json", "predict.py", "README.md")
    }
    assert json.loads((ship / "labels.json").read_text(encoding="utf-8")) == CLASSES
    assert json.loads((ship / "preprocessing.json").read_text())["image_size"] == SIZE
    shown = []
    for number, colour in enumerate([(90, 0, 10), (0, 80, 0), (0, 0, 70)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (30, 17), colour).save(path)
        shown.append(str(path))
    hidden = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'mlflow', 'pandas', 'analysis', 'trainables']))"
    )
    code = f"{hidden}; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ship / "predict.py"), *shown],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONIOENCODING": "utf-8", "PATH": "/usr/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == CLASSES
    assert not (tmp_path / "ran").exists()
    bare = subprocess.run([sys.executable, str(ship / "predict.py")], capture_output=True, text=True, timeout=60)
    assert bare.returncode == 1 and "python predict.py IMAGE..." in bare.stderr


@pytest.mark.parametrize("which", ["most_accurate", "fastest", "smallest", "teacher", "2"])
def test_every_name_leads_to_a_file(out: Path, tmp_path: Path, which: str) -> None:
    assert main(["export", f"night@{which}", "--to", str(tmp_path), "--out", str(out)]) == 0
    assert (tmp_path / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_an_alias_of_the_registry_wins_if_it_is_this_sweeps(out: Path, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    client.create_registered_model("night")
    run = client.search_runs(["1"], "tags.trial_number = '3'")[0].info.run_id
    ours = client.create_model_version("night", source=f"{out}/artifacts/{run}/artifacts", run_id=run)
    parent = client.search_runs(["1"], "tags.kind = 'sweep'")[0].info.run_id
    foreign = client.create_model_version("night", source=f"{out}/artifacts/{parent}/artifacts", run_id=parent)
    client.set_registered_model_alias("night", "production", ours.version)
    client.set_registered_model_alias("night", "balanced", foreign.version)
    for which in ("production", "balanced"):
        assert main(["export", f"night@{which}", "--to", str(tmp_path / which), "--out", str(out)]) == 0
    assert "trial 3:" in (tmp_path / "production" / "README.md").read_text(encoding="utf-8")
    assert "trial " in (tmp_path / "balanced" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("night", "'night' is no NAME@WHICH"),
        ("night@best", "no such alias"),
        ("night@77", "night@77: no such finished trial"),
        ("gone@balanced", "no sweep name='gone' in"),
    ],
)
def test_unknown_names_are_told(out: Path, tmp_path: Path, which: str, message: str, capsys) -> None:
    assert main(["export", which, "--to", str(tmp_path / "ship"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "ship").exists()


def test_a_file_where_the_folder_should_be_is_named(out: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "ship").write_text("")
    assert main(["export", "night@balanced", "--to", str(tmp_path / "ship"), "--out", str(out)]) == 2
    assert f"--to {tmp_path / 'ship'} cannot be written (File exists)" in capsys.readouterr().err


def test_a_model_that_does_not_tell_its_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx does not state its class names"):
        stated_in(linear_model(tmp_path / "model.onnx", metadata=False))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx"):
        stated_in(tmp_path / "text.onnx")


@pytest.mark.parametrize(
    ("words", "said"), [([], "Names the class"), (["--help"], "Names the class"), (["no.jpg"], "no.jpg: ")]
)
def test_predict_answers_a_wrong_word_in_a_line(
    out: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "night@balanced", "--to", str(tmp_path / "ship"), "--out", str(out)]) == 0
    command = [sys.executable, str(tmp_path / "ship" / "predict.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1


def test_predict_is_short() -> None:
    assert len([line for line in io.StringIO(PREDICT) if line.strip()]) <= 35


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt", "recipe.json"])
def test_a_link_among_the_artifacts_is_not_followed(out: Path, tmp_path: Path, name: str, capsys) -> None:
    """A copied folder of sweeps must not choose which file of this machine is shipped."""
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    run = client.search_runs(["1"], "tags.trial_number = '1'")[0].info.run_id
    file = out / "artifacts" / run / "artifacts" / name
    kept = file.rename(file.with_suffix(".kept")) if file.exists() else None
    file.symlink_to(linear_model(tmp_path / "secret"))
    try:
        assert main(["export", "night@1", "--to", str(tmp_path / "ship"), "--out", str(out)]) == 2
    finally:
        file.unlink()
        if kept:
            kept.rename(file)
    assert f"{name} is a link, which is not followed" in capsys.readouterr().err
    assert not (tmp_path / "ship").exists()


def test_links_where_the_files_go_are_replaced_and_not_written_through(out: Path, tmp_path: Path) -> None:
    (tmp_path / "ship").mkdir()
    (tmp_path / "mine").write_text("mine")
    names = ("model.onnx", "preprocessing.json", "labels.json", "predict.py", "README.md")
    for name in names:
        (tmp_path / "ship" / name).symlink_to(tmp_path / "mine")
    assert main(["export", "night@1", "--to", str(tmp_path / "ship"), "--out", str(out)]) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert not any((tmp_path / "ship" / name).is_symlink() for name in names)


def test_predict_reads_the_formats_of_training_and_starts_no_program(tmp_path: Path, fake_ghostscript: Path) -> None:
    names: dict[str, object] = {}
    exec(PREDICT.partition("here = ")[0], names)
    assert tuple(names["KINDS"]) == FORMATS
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(UnidentifiedImageError):
        names["pixels"](tmp_path / "a.jpg", SIZE)
    assert not fake_ghostscript.exists()
