from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from breaking_nets import Plain
from torch import Tensor

from trainables.config.compression import PruneConfig
from trainables.config.training import TrainingConfig
from trainables.records.stages import DatasetRecord
from trainables.stages.pruning import cuts
from trainables.stages.pruning.channels import widths


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("deterministic", [True, False])
def test_gradients_are_as_deterministic_as_the_candidate_and_not_as_the_process_was_left(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that comes from the store trains nothing, so that nobody before the cut has asked for it."""
    seen: list[bool] = []

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        yield torch.randn(8, 3, 8, 8), torch.arange(8) % 5

    monkeypatch.setattr(cuts, "gradient_images", lambda images, device: batches)
    torch.use_deterministic_algorithms(not deterministic)
    dataset = DatasetRecord(
        name="digits",
        folder=Path(),
        fingerprint="f" * 64,
        class_names=tuple("abcde"),
        image_size=8,
        num_train=2,
        num_val=2,
        num_test=2,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    bench = SimpleNamespace(
        images=SimpleNamespace(mean=torch.zeros(3)),
        dataset=dataset,
        candidate=SimpleNamespace(training=TrainingConfig(deterministic=deterministic)),
    )
    model, config = Plain(), PruneConfig(pruning_ratio=0.25, pruning_criterion="taylor")
    cuts.cut(model, config, bench, channel_ratio=0.25, dense=widths(model))
    assert set(seen) == {deterministic}
    assert widths(model)["first"] == 24
