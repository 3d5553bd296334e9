"""The table of `python -m trainables.stages.pruning --check`, on models that are quick to prune."""

import pytest

from trainables.stages.models.inspection import count
from trainables.stages.pruning import __main__ as check_module
from trainables.stages.pruning import channels
from trainables.stages.pruning.__main__ import WAYS, Way, check, main, table
from trainables.stages.pruning.methods import compare


def test_every_cell_of_a_small_table_passes_or_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--models", "alexnet_small", "--ratios", "0,0.5"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| alexnet_small")]
    assert [row[1] for row in rows] == [str(way) for way in WAYS]
    refused = {row[1] for row in rows if "refused" in row[3]}
    assert refused == {"bn_scale layer", "bn_scale global"}
    assert "bn_scale needs BatchNorm" in shown
    assert shown.endswith("0 failed\n")


def test_what_only_pretends_to_prune_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(model, *, method, ratio, image_size, **rest):
        return compare(model, count(model, image_size), method=method, ratio=ratio, image_size=image_size)

    monkeypatch.setattr(check_module, "prune", idle)
    text, failed = table(["alexnet_small"], [0.5], [Way(method="structured")])
    assert failed == 1
    assert "removed nothing and said nothing" in text


def test_a_crash_fails_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(model, **rest):
        raise IndexError("channel 8")

    monkeypatch.setattr(check_module, "prune", crash)
    cell = check("alexnet_small", Way(method="structured"), 0.5, check_module._dense("alexnet_small"))
    assert (cell.verdict, cell.text) == ("FAILED", "IndexError: channel 8")


def test_a_crash_of_the_library_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*rest: object, **more: object) -> None:
        raise IndexError("channel 8")

    monkeypatch.setattr(channels, "_Cutter", crash)
    found = check("alexnet_small", Way(method="structured"), 0.5, check_module._dense("alexnet_small"))
    assert found.verdict == "FAILED"
    assert "cannot handle this architecture (IndexError: channel 8, in line " in found.text


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--ratios", "x"], "--ratios x"), (["--models", "alexnet_smal"], "alexnet_small"), ([], "--check")],
)
def test_bad_input_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--check", *words] if words else [])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert named in told
