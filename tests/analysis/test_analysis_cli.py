import subprocess
import sys

import pytest

from analysis.__main__ import main


def test_prints_the_front_and_writes_into_the_sweeps_folder(out, capsys):
    assert main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "teacher" in printed
    assert "hypervolume" in printed
    assert "most accurate" in printed
    assert (out / "sweeps" / "night" / "front" / "pareto.html").is_file()


def test_to_and_tracking_uri_win(store, tmp_path, capsys):
    assert main(["--tracking-uri", store, "--name", "night", "--to", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / "pareto.csv").is_file()


def test_a_sweep_without_candidates_says_so(out, tmp_path, capsys):
    assert main(["--out", str(out), "--name", "early", "--to", str(tmp_path)]) == 1
    assert "no finished candidate yet (no trials)" in capsys.readouterr().out


def test_missing_store_and_missing_sweep_exit_with_2_and_one_line(out, tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 2
    assert main(["--out", str(out), "--name", "gone"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"--out {tmp_path} has no mlflow.db" in lines[0]
    assert "--name 'gone'" in lines[1]
    assert "night, early" in lines[1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(out, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(out), "--to", str(tmp_path / "file")]) == 2
    assert f"--to {tmp_path / 'file'} cannot be written (File exists)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--nme", "x"], ["--nam", "x"], ["stray"], ["--name"]])
def test_unknown_flags_exit_with_2_and_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert arguments[0] in error


def test_analysis_imports_neither_torch_nor_ray():
    code = (
        "import analysis.__main__, analysis.front, analysis.runs, sys;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'optuna', 'onnxruntime'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
