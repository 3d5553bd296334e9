"""Bash completes the flags of the installed commands, and their values where there is a list of them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from sweeps.ablation import main as ablation
from sweeps.kd_prune import main as sweep
from sweeps.runtimes import main as runtimes

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_${1//-/_} "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("main", "typed", "offered"),
    [
        (sweep, "compression-sweep --pruning-r", {"--pruning-ratio"}),
        (sweep, "compression-sweep --trials 3 --preset ", {"cifar10", "quick"}),
        (ablation, "compression-ablation --preset kd", {"kd-grid"}),
        (runtimes, "compression-runtimes --bat", {"--batches"}),
        (analysis, "compression-analysis exp", {"export"}),
        (analysis, "compression-analysis select --max-l", {"--max-latency-ms"}),
    ],
)
def test_bash_completes(
    main: Callable[[list[str]], int],
    typed: str,
    offered: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert caught.value.code == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    words = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), *typed.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert set(done.stdout.split()) == offered, done.stderr
