import subprocess
import sys

import pytest

from analysis.__main__ import COMMANDS, main


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


def test_sweeps_taken_together_have_a_folder_that_is_not_taken_for_a_sweep(out, capsys):
    before = {path.name for path in (out / "sweeps").glob("*")}
    assert main(["--out", str(out), "--name", "night,early"]) == 0
    assert (out / "together" / "night-early" / "front" / "pareto.csv").is_file()
    assert {path.name for path in (out / "sweeps").glob("*")} == before


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


def test_select_prints_the_file_the_runner_up_and_how_to_ship_it(out, capsys):
    assert main(["select", "--out", str(out), "--max-size-mb", "6", "--min-accuracy", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("runs:/") and lines[0].endswith("/model.onnx")
    assert "% (n = 5,000)" in lines[1] and "the most accurate of" in lines[1]
    assert lines[2].startswith("runner-up trial ")
    assert "analysis export night@" in lines[3]


def test_select_names_the_file_in_the_sweeps_folder_where_it_is_there(out, capsys):
    for number in range(8):
        model = out / "sweeps" / "night" / "trials" / f"{number:05}" / "model.onnx"
        model.parent.mkdir(parents=True, exist_ok=True)
        model.touch()
    assert main(["select", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("model.onnx")


def test_select_that_nothing_fits_says_what_it_would_take(out, capsys):
    goal = ["--max-latency-ms", "0.001", "--min-accuracy", "0.5"]
    assert main(["select", "--out", str(out), *goal]) == 1
    printed = capsys.readouterr().out
    assert "Nothing fits --max-latency-ms 0.001, --min-accuracy 0.5 among 8 finished candidates" in printed
    assert "nearest miss trial " in printed
    value = printed.partition("it would take --max-latency-ms ")[2].partition(",")[0]
    assert main(["select", "--out", str(out), "--max-latency-ms", value, "--min-accuracy", "0.5"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-accuracy", "90"], "--min-accuracy 90"),
        (["--max-latency-ms", "-1"], "--max-latency-ms -1"),
        (["--device", "tpu"], "--device 'tpu' has no candidate in sweep night"),
        (["--name", "early", "--device", "cpu:1"], "--device 'cpu:1' has no candidate in sweep early"),
    ],
)
def test_bad_wishes_exit_with_2_and_one_line(out, words, message, capsys):
    assert main(["select", "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_every_command_reads_a_sweep_that_has_no_trial_yet(out, tmp_path, capsys):
    assert main(["select", "--out", str(out), "--name", "early"]) == 1
    assert main(["report", "--out", str(out), "--name", "early", "--to", str(tmp_path)]) == 1
    assert main(["importance", "--out", str(out), "--name", "early"]) == 2
    assert main(["compare", "night", "early", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("no finished candidate yet") == 2
    assert len(printed.err.splitlines()) == 2


def test_importance_compare_report_and_du_print_their_results(out, tmp_path, capsys):
    assert main(["importance", "--out", str(out)]) == 0
    assert "fANOVA over 8 finished trials" in capsys.readouterr().out
    assert main(["compare", "night", "night", "--out", str(out)]) == 0
    assert "night and night have the same hypervolume" in capsys.readouterr().out
    assert main(["report", "--out", str(out), "--to", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["du", "--out", str(out)]) == 0
    assert "mlflow.db" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown or f"    {name}\n" in shown for name in COMMANDS)


def test_analysis_imports_neither_torch_nor_ray():
    code = (
        "import analysis.__main__, analysis.findings.front, analysis.reading.runs, sys;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'optuna', 'onnxruntime'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
