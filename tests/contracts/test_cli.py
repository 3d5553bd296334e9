import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from PIL import Image
from ray.tune.error import TuneError

from sweeps.kd_prune import main
from sweeps.running.interface.command import BAD_INPUT, FAILED
from sweeps.search.config import PARTS, SweepConfig
from sweeps.search.presets import quick
from trainables.config.flags import flag_name
from trainables.records.encoding import to_json
from trainables.stages.data.sources import downloads
from trainables.stages.data.sources.downloads import Archive

COMMAND = Path(__file__).parents[2] / "sweeps" / "kd_prune.py"


@pytest.fixture(autouse=True)
def no_sweep_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input that gets through fails its test at once instead of training for minutes."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("bad input was accepted"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def run(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(COMMAND), *words]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def settings(config: SweepConfig) -> set[str]:
    """Names of everything in a sweep's configuration that one flag can set."""
    names = {"name", *config.search.space, *config.search.base.flat()}
    for part in PARTS:
        names |= vars(getattr(config, part)).keys() - {"base", "space"}
    return names


def test_help_names_every_setting_and_its_default(tmp_path: Path) -> None:
    done = run(tmp_path, "--help-all")
    assert (done.returncode, done.stderr) == (0, "")
    entries = re.split(r"\n  (?=-)", done.stdout.partition("\ncommand:")[2])[1:]
    by_flag = {entry.replace(",", " ").split()[0]: entry for entry in entries}
    own = {
        "--preset",
        "--config",
        "--plan",
        "--budget",
        "--retry-failed",
        "--quiet",
        "--json",
        "--print-completion",
        "--help-all",
        "-h",
    }
    assert by_flag.keys() == {flag_name(name) for name in settings(quick())} | own
    for flag, entry in by_flag.items():
        assert flag in ("-h", "--help-all", "--print-completion") or "(default:" in entry, entry
    assert list(tmp_path.iterdir()) == []


def test_the_short_help_names_the_usual_flags_and_the_long_one_no_python_words(tmp_path: Path) -> None:
    short, long = run(tmp_path, "--help").stdout, run(tmp_path, "--help-all").stdout
    flags = [{line.split()[0] for line in text.splitlines() if line.startswith("  --")} for text in (short, long)]
    assert flags[0] < flags[1]
    assert {"--dataset", "--budget", "--max-latency-ms", "--gpus", "--help-all"} <= flags[0]
    assert f"{len(flags[1]) - len(flags[0])} more flags: --help-all" in short
    assert len(short.splitlines()) < 120 < len(long.splitlines())
    assert not re.search(r"\bNone\b|trainables\.|10\^6|`", long)
    assert "{composite,pareto}" in long and "--crop {none,padded,resized}" in long
    assert short.index("\nsearch space:") < short.index("\nlimits:") < short.index("\nfiles and cluster:")


def test_help_shows_the_defaults_of_the_preset(tmp_path: Path) -> None:
    text = run(tmp_path, "--preset", "quick", "--help").stdout
    assert re.search(r"--student-model SPACE.*?\(default:\s+teacher,alexnet_small\)", text, re.DOTALL)
    assert re.search(r"--trials N.*?\(default:\s+12\)", text, re.DOTALL)


def test_help_and_wrong_flags_need_neither_torch_nor_ray(tmp_path: Path) -> None:
    for words in (["--help"], ["--alfa", "1"], ["--alpha", "1.5"]):
        command = [sys.executable, "-X", "importtime", str(COMMAND), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import")}
        assert "argparse" in imported
        assert not imported & {"torch", "ray", "mlflow", "onnxruntime"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--alfa", "0.5"], "unknown flag --alfa; did you mean --alpha?"),
        (["--dataset", "folder:nowhere"], "--dataset folder:nowhere: no such folder"),
    ],
)
def test_the_real_command_answers_bad_input_on_one_line(tmp_path: Path, words: list[str], named: str) -> None:
    done = run(tmp_path, "--preset", "quick", "--out", "runs", *words)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert files_in(tmp_path / "runs") == []


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class Refused:
    """Runs the command in this process and checks that it says no as it should."""

    def __init__(self, out: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self._data_dir, self._capsys = out, data_dir, capsys

    def __call__(self, *words: str, data_dir: Path | None = None) -> str:
        """The one line on standard error."""
        before = {path: path.read_bytes() for path in files_in(self.out)}
        where = ["--preset", "quick", "--out", str(self.out), "--data-dir", str(data_dir or self._data_dir)]
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*where, *words])
        captured = self._capsys.readouterr()
        assert caught.value.code == BAD_INPUT
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("kd_prune.py: ")
        assert {path: path.read_bytes() for path in files_in(self.out)} == before
        return captured.err


@pytest.fixture
def refused(tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path / "runs", data_dir, capsys)


def test_a_misspelt_model_is_named_with_the_one_that_was_meant(refused: Refused) -> None:
    """More bad values stand in `faults.py`."""
    line = refused("--student-model", "mobilnet_v3_small")
    assert "'mobilnet_v3_small'" in line and "mobilenet_v3_small" in line


@pytest.mark.parametrize(
    "words",
    ["--teacher-model resnet81", "--student-model resnet81", "--batch-size 1"],
)
def test_bad_values_are_named_with_their_flag(refused: Refused, words: str) -> None:
    assert words.split()[0] in refused(*words.split())


@pytest.mark.parametrize("share", ["nan", "inf"])
def test_a_share_that_is_no_number_is_named(refused: Refused, share: str) -> None:
    assert f"--gpus-per-trial {share}" in refused("--gpus-per-trial", share)


def test_a_negative_search_seed_is_named_before_anything_is_trained(refused: Refused) -> None:
    assert "--search-seed -1" in refused("--search-seed", "-1")


def test_a_tracking_uri_of_an_unknown_kind_is_named(refused: Refused) -> None:
    assert "--tracking-uri nowhere://x" in refused("--tracking-uri", "nowhere://x")


@pytest.mark.parametrize("flag", ["--out", "--data-dir"])
@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_way_of_a_folder(refused: Refused, tmp_path: Path, flag: str, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(flag, str(tmp_path / "file" / below))
    assert f"{flag} {tmp_path / 'file' / below}: cannot be written" in line
    assert (tmp_path / "file").read_text() == "in the way"


def make_photos(root: Path, **changes: tuple[str, ...]) -> Path:
    """An image folder of cats and dogs; `train` and `test` take other classes."""
    for split in ("train", "test"):
        for shade, name in enumerate(changes.get(split, ("cat", "dog"))):
            (root / split / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (16, 16), (i, 100 * shade, 0)).save(root / split / name / f"{i}.png")
    return root


def test_image_folders_that_cannot_work(refused: Refused, tmp_path: Path) -> None:
    def refuse(root: Path, *named: str) -> None:
        line = refused("--dataset", f"folder:{root}")
        assert all(part in line for part in (f"--dataset folder:{root}", *named)), line

    refuse(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no folder 'train'", "train/<class>/")
    refuse(make_photos(tmp_path / "one", train=("cat",), test=("cat",)), "'cat'", "two classes")
    refuse(make_photos(tmp_path / "other", test=("cat", "wolf")), "test/ lacks dog", "train/ lacks wolf")
    (make_photos(tmp_path / "hollow") / "train" / "eel").mkdir()
    refuse(tmp_path / "hollow", "no images in train/eel/")
    (make_photos(tmp_path / "broken") / "test" / "dog" / "3.png").write_bytes(b"no image")
    refuse(tmp_path / "broken", "test/dog/3.png")


def test_a_download_without_network_says_where_to_put_the_file(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz"
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", Archive(url, "0" * 32))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    line = refused("--dataset", "cifar10", data_dir=tmp_path / "data")
    assert "--dataset cifar10: cannot download" in line
    assert f"put the file cifar-10-python.tar.gz into {tmp_path / 'data'}" in line
    assert list((tmp_path / "data").glob("*.part")) == []


def made(out: Path, name: str) -> Path:
    """What an earlier run of `--preset quick --name NAME` leaves behind."""
    folder = out / "sweeps" / name
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(to_json({"sweep_id": "x", "settings": quick().identity()}))
    (folder / "driver.lock").touch()
    return folder


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--student-epochs 7", ["student_epochs=3", "7"]),
        ("--alpha 0.5", ["alpha"]),
        ("--latency-points 2", ["latency_points=1.0", "2.0"]),
        ("--train-limit 500", ["train_limit=None", "500"]),
    ],
)
def test_a_name_that_was_used_with_other_settings(refused: Refused, words: str, named: list[str]) -> None:
    made(refused.out, "mine")
    line = refused("--name", "mine", *words.split())
    assert "--name mine: that sweep was made with" in line
    assert all(part in line.replace("--", "").replace("-", "_").replace(" ", "=") for part in named), line


@pytest.mark.parametrize("there", [{"base": quick().search.base.flat() | {"ema_decay": 0.9}}, {"base": None}])
def test_a_name_that_was_used_by_another_version(refused: Refused, there: dict) -> None:
    folder = made(refused.out, "mine")
    identity = {name: part for name, part in (quick().identity() | there).items() if part is not None}
    (folder / "identity.json").write_text(to_json({"sweep_id": "x", "settings": identity}))
    assert "--name mine" in refused("--name", "mine")


def test_a_name_that_another_process_is_using(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read or timed beside it."""
    monkeypatch.setattr("trainables.stages.data.prepared.prepare", lambda *_: pytest.fail("it has begun"))
    with (made(refused.out, "mine") / "driver.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "--name mine: another process runs this sweep" in refused("--name", "mine")


def test_limits_that_no_candidate_can_keep_to(refused: Refused) -> None:
    line = refused("--max-size-mb", "0.001", "--train-limit", "100")
    assert "--max-size-mb 0.001 (it has 0." in line
    assert "widen --pruning-ratio" in line


def test_a_store_that_another_version_has_written(tmp_path: Path) -> None:
    (tmp_path / "runs" / "store").mkdir(parents=True)
    (tmp_path / "runs" / "store" / "store.json").write_text('{"format": 99}')
    done = run(tmp_path, "--preset", "quick", "--out", "runs")
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr.startswith("kd_prune.py: --out runs: runs/store was written in store format 99, but this")
    assert "python -m trainables.store gc --all" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("fills a small disk, and may not mount one (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_with_no_room_for_a_sweep(tmp_path: Path, small_disk: Path) -> None:
    done = run(tmp_path, "--preset", "quick", "--out", str(small_disk / "runs"))
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert "MB are free on its disk, and the smallest sweep takes 100 MB. Make room" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_disk_that_fills_while_a_sweep_runs(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills(*_: object, **__: object) -> int:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "runs/sweeps/x/study.journal")
        except OSError:
            raise TuneError("as Tune tells what a callback has raised")  # noqa: B904  # Tune raises it without `from`

    monkeypatch.setattr("sweeps.running.launch.run_sweep", fills)
    words = ["--preset", "quick", "--train-limit", "100", "--out", str(tmp_path / "runs")]
    assert main([*words, "--data-dir", str(data_dir)]) == FAILED
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (
        f"runs/sweeps/x/study.journal: No space left on device. Make room (python -m trainables.store gc --out"
        f" {tmp_path / 'runs'}); the same command goes on.\n"
    )


@pytest.mark.parametrize("shared", [False, True], ids=["out", "storage"])
def test_a_damaged_result_that_a_worker_found_is_told(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """As `trainables.store` leaves it; workers themselves speak to nobody."""
    store = tmp_path / ("shared" if shared else "runs") / "store"
    (store / "teacher" / "old.corrupt-1").mkdir(parents=True)

    def finds(*_: object, **__: object) -> int:
        (store / "student" / "abc.corrupt-1").mkdir(parents=True)
        return 0

    monkeypatch.setattr("sweeps.running.launch.run_sweep", finds)
    words = ["--preset", "quick", "--train-limit", "100", "--out", str(tmp_path / "runs")]
    words += ["--storage", str(tmp_path / "shared")] if shared else []
    assert main([*words, "--data-dir", str(data_dir)]) == 0
    shown = capsys.readouterr().out
    assert shown == f"{store / 'student' / 'abc.corrupt-1'} was damaged: it was moved aside and computed again.\n"


def test_files_that_are_left_out_are_said_before_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (f"{split}/{name}/{i}" for split in ("train", "test") for name in ("cat", "dog") for i in range(4)):
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / "photos" / f"{path}.png")
        (tmp_path / "photos" / f"{path}.heic").touch()
    monkeypatch.setattr("sweeps.running.launch.run_sweep", lambda *_, **__: 0)
    words = ["--preset", "quick", "--dataset", f"folder:{tmp_path / 'photos'}", "--val-fraction", "0.25"]
    assert main([*words, "--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]) == 0
    assert "16 of 32 files are left out (16 .heic)" in capsys.readouterr().out


def test_a_folder_that_is_no_text_in_the_locale_is_named(tmp_path: Path) -> None:
    """An umlaut where Python takes names for ASCII."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, str(COMMAND), "--trials", "0", "--out", b"L\xc3\xa4ufe"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | locale, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    fix = "is no text in this locale; set PYTHONUTF8=1, and give files UTF-8 names."
    assert done.stderr == f"kd_prune.py: b'L\\xc3\\xa4ufe' {fix}\n"
    assert not list(tmp_path.iterdir())


def test_output_is_for_people_or_for_programs(tmp_path: Path) -> None:
    done = run(tmp_path, "--quiet", "--json")
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr == "kd_prune.py: argument --json: not allowed with argument --quiet\n"


def test_help_fits_eighty_columns_and_ends_with_examples(tmp_path: Path) -> None:
    for command in (COMMAND, COMMAND.with_name("ablation.py")):
        done = subprocess.run(
            [sys.executable, str(command), "--help"],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80, max(lines, key=len)
        assert any("exit codes: 0 all done" in line for line in lines[-2:])
        assert "\nexamples:\n  python sweeps/" in done.stdout
