"""A transformer of timm on images in the hub's form, from the data to the measured INT8 file."""

import json
from pathlib import Path

import datasets
import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trainables.records.encoding import read_json
from trainables.stages.candidate.__main__ import main


def write_digits(root: Path) -> None:
    """Parquet files of digits, as they lie on the hub."""
    digits = load_digits()
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    root.mkdir()
    for split, part in (("train", slice(0, 150)), ("test", slice(1700, 1797))):
        pictures = [Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16)) for image in digits.images[part]]
        rows = {"image": pictures, "label": digits.target[part].tolist()}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(root / f"{split}-00000-of-00001.parquet")


@pytest.mark.slow
def test_a_transformer_is_distilled_cut_quantised_exported_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "digits")
    code = main(
        [
            *["--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data"), "--threads", "1"],
            *["--dataset", f"hf:{tmp_path / 'digits'}", "--crop", "none", "--no-flip", "--batch-size", "16"],
            *["--teacher-model", "alexnet_small", "--teacher-epochs", "2", "--student-model", "timm:test_vit"],
            *["--student-epochs", "2", "--recovery-epochs", "1", "--pruning-method", "structured"],
            *["--pruning-ratio", "0.5", "--precision", "int8_ptq"],
            *["--latency-seconds", "0.1", "--latency-max-attempts", "1"],
        ]
    )
    assert code == 0
    said, _, folder = capsys.readouterr().out.partition("files: ")
    metrics = json.loads(said)
    assert 0.25 < metrics["achieved_params_ratio"] < 0.6
    assert metrics["parity_agreement"] > 0.9
    assert metrics["latency_p50_ms"] > 0 and metrics["test_accuracy"] > 0
    file = onnx.load(Path(folder.strip()) / "model.onnx")
    integers = sum(node.op_type == "DequantizeLinear" for node in file.graph.node)
    assert integers > 20, "the blocks' Linear layers are INT8"
    plans = [read_json(path) for path in (tmp_path / "runs" / "store").rglob("pruning.json")]
    left, dense = plans[0]["channels"], plans[0]["dense_channels"]
    assert sum(left[f"blocks.{i}.attn.qkv"] == dense[f"blocks.{i}.attn.qkv"] // 2 for i in range(6)) == 6
    recipe = json.loads({prop.key: prop.value for prop in file.metadata_props}["recipe"])
    assert (recipe["student_model"], recipe["dataset"]) == ("timm:test_vit", "hf:./digits")
