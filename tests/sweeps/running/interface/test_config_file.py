"""Settings from a file: what it may say, what is refused, and that the file of a sweep asks for the same sweep."""

import shlex
from pathlib import Path

import pytest

from sweeps import ablation, kd_prune
from sweeps.running.interface.config_file import from_program
from sweeps.running.interface.sweep_toml import sweep_toml
from sweeps.search.config import SweepConfig


def sweep_of(words: list[str]) -> tuple[SweepConfig, str]:
    """The sweep that kd_prune.py makes of the words, and its sweep.toml."""
    parser, flags = kd_prune._parse(words)
    typed = dict(vars(flags))
    config = kd_prune._config(flags)
    return config, sweep_toml(typed, config, parser, "kd_prune.py")


def ablation_of(words: list[str]) -> tuple[SweepConfig, str]:
    parser, flags = ablation.parse(words)
    typed = dict(vars(flags))
    config = ablation.config_from(flags)
    return config, sweep_toml(typed, config, parser, "ablation.py")


def written(folder: Path, text: str) -> list[str]:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--preset quick",
        "--preset quick --trials 3 --alpha 0.3 --temperature 2,4 --learning-rate 1e-4:1e-2 --name night --seed 7",
        "--preset quick --student-model teacher --pruning-criterion lamp,taylor --precision fp32 --no-nesterov"
        " --mixup-alpha 0.1 --image-size 128 --dataset cifar100 --gpus 1 --gpus-per-trial 0.25 --max-drop 1 --cpus 2",
        "--preset quick --budget 1h30m",
        "--preset quick --budget 90s --student-epochs 2 --student-model alexnet_small",
        "--preset quick --teacher-model alexnet --teacher-weights big.pt --latency-points 3.5 --objective composite",
    ],
)
def test_the_file_of_a_sweep_asks_for_the_same_sweep(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big.pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    words = words.replace(" --no-nesterov", "")
    config, text = sweep_of([*shlex.split(words), "--out", "elsewhere"])
    again, text_again = sweep_of(written(tmp_path, text))
    assert again.identity() == config.identity()
    assert again.replace(out=config.places.out) == config
    assert text_again == text
    assert "elsewhere" not in text, "a path of this machine"


@pytest.mark.parametrize(
    "words",
    [
        "--preset kd-grid --base quick --seeds 2 --temperature 1,4",
        "--preset augmentation --randaugment-magnitude 5 --seed 3",
        "--preset amp --base quick --seeds 1 --kd-loss none",
        "--preset precision --teacher-epochs 2 --gpus 2",
    ],
)
def test_the_file_of_an_ablation_asks_for_the_same_grid(words: str, tmp_path: Path) -> None:
    config, text = ablation_of(shlex.split(words))
    again, text_again = ablation_of(written(tmp_path, text))
    assert again == config
    assert text_again == text


@pytest.mark.parametrize(("file", "flag"), [("budget = 600.0", "--trials=50"), ("trials = 12", "--budget=1h")])
def test_trials_replace_the_budget_of_a_file_and_a_budget_its_trials(tmp_path: Path, file: str, flag: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'preset = "quick"\n{file}\n', encoding="utf-8")
    _, flags = kd_prune._parse(["--config", str(path), flag])
    assert (flags.trials, flags.budget) == ((50, None) if "trials" in flag else (None, 3600))
    kd_prune._config(flags)
    key, _, value = flag.removeprefix("--").partition("=")
    said = from_program(path, {key: int(value) if value.isdigit() else value})
    assert {"trials", "budget"} & set(said.settings) == {key}


def test_flags_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    text = 'preset = "quick"\ntrials = 7\n[teacher]\nteacher_epochs = 2\n[space]\nalpha = [0.2, 0.4]\ntemperature = 3\n'
    config, _ = sweep_of([*written(tmp_path, text), "--trials", "5"])
    assert config.search.trials == 5
    assert config.search.base.teacher.teacher_epochs == 2
    assert config.search.base.data.dataset == "digits"
    assert config.search.space["alpha"].choices == (0.2, 0.4)
    assert config.search.space["temperature"].choices == (3.0,)
    config, _ = sweep_of([*written(tmp_path, text), "--preset", "cifar10"])
    assert config.search.base.data.dataset == "cifar10"


MISTAKES = """
alfa = "0:1"                  | unknown key in alfa = "0:1"; did you mean alpha?
pruning-ratio = 0.5           | unknown key in pruning-ratio = 0.5; did you mean pruning_ratio?
zzz = true                    | unknown key in zzz = true; see --help for the names.
quiet = true                  | unknown key in quiet = true; see --help for the names.
trials = "many"               | trials = "many" must be a whole number.
trials = 2.5                  | trials = 2.5 must be a whole number.
trials = true                 | trials = true must be a whole number.
pretrained = "yes"            | pretrained = "yes" must be true or false.
teacher_model = 18            | teacher_model = 18 must be text.
val_fraction = "half"         | val_fraction = "half" must be a number.
alpha = []                    | alpha = [] must be a value, a list of values, or a range such as "0.5:1".
alpha = [[1]]                 | alpha = [ [ 1, ], ] must be a value, a list of values, or a range such as "0.5:1".
gpus_per_trial = false        | gpus_per_trial = false must be a number or text.
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
@pytest.mark.parametrize("table", ["", "[search]\n"])
def test_a_mistake_is_one_line_with_key_value_and_fix(
    case: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, said = (part.strip() for part in case.split("|"))
    words = written(tmp_path, f"{table}{wrong}\n")
    with pytest.raises(SystemExit) as caught:
        kd_prune.main([*words, "--out", str(tmp_path / "runs")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"kd_prune.py: --config {words[1]}: {said}\n"
    assert not (tmp_path / "runs").exists()


def test_every_mistake_of_a_file_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'alfa = 1\ntrials = "x"\n[a]\nseeds = 2\n[b]\nseeds = 3\n'
    with pytest.raises(SystemExit):
        kd_prune.main(written(tmp_path, text))
    lines = [line.partition("mine.toml: ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "seeds stands in two tables; leave one out.",
        "unknown key in alfa = 1; did you mean alpha?",
        'trials = "x" must be a whole number.',
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read (No such file or directory)."), (b"a = ", "is no TOML ("), (b"\xff", "is no TOML (")],
)
def test_a_file_that_cannot_be_read_is_one_line(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.toml"
    if content is not None:
        path.write_bytes(content)
    for main in (kd_prune.main, ablation.main):
        with pytest.raises(SystemExit):
            main(["--config", str(path)])
        error = capsys.readouterr().err
        assert f"--config {path}: {said}" in error
        assert error.count("\n") == 1


def test_a_value_out_of_range_is_refused_as_its_flag_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        kd_prune.main([*written(tmp_path, "alpha = 1.5\n"), "--out", str(tmp_path / "runs")])
    assert caught.value.code == 2
    assert "--alpha 1.5" in capsys.readouterr().err
