"""`sweep`: the command's settings as keywords, a mapping or a file; what is wrong is told in one line."""

from pathlib import Path

import numpy as np
import pytest

from sweeps import kd_prune, sweep
from sweeps.running.interface.config_file import ConfigFile


def test_python_says_what_the_command_line_says() -> None:
    """Tables are headings; tuples, paths and NumPy's numbers are what they would be in a file; None says nothing."""
    content = {
        "preset": "quick",
        "search": {"trials": np.int64(7), "sampler": None},
        "space": {"temperature": (2, np.float64(4)), "pruning_ratio": "0.2:0.8"},
        "out": Path("elsewhere"),
        "flip": False,
    }
    said = kd_prune._config(kd_prune._parse([], ConfigFile.of(content))[1])
    words = "--preset quick --trials 7 --temperature 2,4 --pruning-ratio 0.2:0.8 --out elsewhere --no-flip"
    assert said == kd_prune._config(kd_prune._parse(words.split())[1])


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (None, {"trails": 3}, r"unknown key in trails = 3; did you mean trials\?"),
        (None, {"preset": "cifar"}, "argument --preset: invalid choice: 'cifar'"),
        (None, {"preset": "quick", "alpha": 1.5}, r"`0 <= alpha <= 1` must hold, but got --alpha 1\.5\."),
        (None, {"json": True}, "unknown key in json = true"),
        ({"search": {"trials": "x"}}, {}, 'trials = "x" must be a whole number'),
        ({"search": {"trials": 1}, "trials": 2}, {}, "trials stands in two tables; leave one out"),
        ({"trials": 3, "budget": "1h"}, {}, "--budget and --trials 3: a budget chooses the number of trials"),
        ("nowhere.toml", {}, r"--config nowhere\.toml: cannot be read \(No such file or directory\)"),
    ],
)
def test_a_wrong_setting_is_one_line(
    config: object, settings: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        sweep(config, **settings)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_keywords_override_the_file_and_each_mistake_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('alfa = 1\n[search]\ntrials = "x"\nsampler = 3\n')
    with pytest.raises(ValueError, match="alfa") as caught:
        sweep(file, trials=2, sampler=4)
    assert str(caught.value).splitlines() == [
        "unknown key in alfa = 1; did you mean alpha?",
        "sampler = 4 must be text.",
    ]
