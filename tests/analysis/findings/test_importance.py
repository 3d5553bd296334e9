import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.findings.importance import EVALUATORS, counted, importance
from analysis.pages.terminal import importance_table


def trials(count: int = 60) -> pd.DataFrame:
    """Accuracy hangs on temperature alone, latency on the method alone, size on nothing."""
    rng = np.random.default_rng(0)
    temperature = rng.choice([1.0, 2.0, 4.0, 8.0], count)
    method = rng.choice(["structured", "l1_unstructured"], count)
    return pd.DataFrame(
        {
            "temperature": temperature,
            "pruning_method": method,
            "learning_rate": rng.choice([1e-4, 1e-3, 1e-2], count),
            "flip": rng.choice([True, False], count),
            "dkd_beta": [None if number % 2 else 8.0 for number in range(count)],
            "epochs": 20,
            "val_accuracy": 0.9 - 0.01 * np.abs(temperature - 4),
            "latency_p50_ms": np.where(method == "structured", 1.0, 2.0),
            "size_bytes": 1_000_000,
        }
    )


PARAMS = ("temperature", "pruning_method", "learning_rate", "flip", "dkd_beta", "epochs")


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_what_moves_a_number_is_named_first(evaluator: str) -> None:
    table = importance(trials(), PARAMS, evaluator=evaluator)
    assert table.index[0] == "temperature"
    assert table["latency_p50_ms"].idxmax() == "pruning_method"
    assert table.loc["temperature", "val_accuracy"] > 0.5
    assert table[["val_accuracy", "latency_p50_ms"]].sum().tolist() == pytest.approx([1, 1])


def test_a_number_that_never_moves_has_no_importances_and_conditional_ones_are_left_out() -> None:
    table = importance(trials(), PARAMS)
    assert table["size_bytes"].isna().all()
    assert set(table.index) == {"temperature", "pruning_method", "learning_rate", "flip"}


def test_epochs_that_follow_from_the_cut_are_no_parameter_and_others_are() -> None:
    frame = trials()
    frame["pruning_ratio"] = np.random.default_rng(1).choice([0.0, 0.5, 0.7], len(frame))
    frame["recovery_epochs"] = frame["pruning_ratio"].map({0.0: 5, 0.5: 17, 0.7: 40})
    names = (*PARAMS, "pruning_ratio", "recovery_epochs")
    assert "recovery_epochs" not in importance(frame, names).index
    assert "recovery_epochs" in importance(frame.assign(pruning_ratio=0.5), names).index


def test_of_very_many_trials_some_are_weighed_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.findings.importance.MOST", 50)
    many = trials(400)
    table = importance(many, PARAMS)
    pd.testing.assert_frame_equal(table, importance(many.sample(50, random_state=0), PARAMS))
    assert table.index[0] == "temperature"
    assert counted(400) == "50 of 400 finished trials"


def test_few_trials_are_called_a_hint() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(importance_table(importance(trials(8), PARAMS), trials=8, evaluator="fanova"))
    assert "8 finished trials" in " ".join(capture.get().split())
    assert "hint" in capture.get()


@pytest.mark.parametrize(
    ("frame", "evaluator", "message"),
    [
        (trials(3), "fanova", "4 trials and a varied parameter, but there are 3 and"),
        (trials().assign(**dict.fromkeys(PARAMS, 1)), "fanova", "there are 60 and 0"),
        (trials(), "shap", "evaluator='shap'"),
    ],
)
def test_bad_input_is_named(frame: pd.DataFrame, evaluator: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importance(frame, PARAMS, evaluator=evaluator)


def test_neither_torch_nor_ray_is_needed() -> None:
    code = (
        "import sys; from tests.analysis.findings.test_importance import PARAMS, trials;"
        "from analysis.findings.importance import importance; importance(trials(), PARAMS);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
