import pytest
import torch

from sweeps.planning.reachable import check_reach, largest_ratio, narrowest
from sweeps.search.config import SweepConfig
from sweeps.search.presets import quick
from sweeps.search.space import parse
from trainables.config.limits import Limits
from trainables.records.stages import DatasetRecord
from trainables.stages.data import prepared


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DatasetRecord:
    return prepared.prepare(quick().search.base.replace(train_limit=100).data, tmp_path_factory.mktemp("data"))


def sweep(ratio: str = "0.2,0.6", method: str = "structured", **limits: float) -> SweepConfig:
    space = {"pruning_ratio": parse("pruning_ratio", ratio), "pruning_method": parse("pruning_method", method)}
    return quick().replace(space=space, limits=Limits(**limits))


def test_the_most_that_any_candidate_loses() -> None:
    assert largest_ratio(sweep("0.2,0.6").search) == 0.6
    assert largest_ratio(sweep("0:0.7", "l1_unstructured,structured").search) == 0.7
    assert largest_ratio(sweep("0.2,0.6", "l1_unstructured").search) == 0
    fixed = quick().replace(space={}, base=quick().search.base.replace(pruning_method="structured", pruning_ratio=0.3))
    assert largest_ratio(fixed.search) == 0.3


def test_limits_are_held_against_the_narrowest_student(digits: DatasetRecord) -> None:
    """Ratio 0.6 leaves 0.5 MB; the size is exact, so that a hair decides."""
    state = torch.get_rng_state()
    has = narrowest(sweep().search.base, digits, 0.6)
    check_reach(sweep(max_size_mb=1.001 * has["size_bytes"] / 1e6, max_macs=has["macs"]), digits)
    with pytest.raises(ValueError, match=r"--max-size-mb 0\.\d+ \(it has 0\.\d+ MB\): .* 60 % of its channels"):
        check_reach(sweep(max_size_mb=round(0.9 * has["size_bytes"] / 1e6, 3)), digits)
    with pytest.raises(ValueError, match=r"--max-macs 1000 \(it has .* MACs\).*widen --pruning-ratio"):
        check_reach(sweep(max_macs=1000), digits)
    assert torch.equal(state, torch.get_rng_state())


def test_a_latency_must_be_out_of_reach_by_a_margin(digits: DatasetRecord) -> None:
    with pytest.raises(ValueError, match=r"--max-latency-ms 1e-06 \(it has .* ms\)"):
        check_reach(sweep(max_latency_ms=1e-6), digits)
    check_reach(sweep(max_latency_ms=1e3), digits)
    on_gpu = sweep(max_latency_ms=1e-6)  # nobody has timed it there yet
    check_reach(on_gpu.replace(base=on_gpu.search.base.replace(latency_runtime="onnxruntime_cuda")), digits)
    check_reach(on_gpu.replace(base=on_gpu.search.base.replace(measure_on="ssh://pi")), digits)


def test_what_is_pruned_to_a_share_or_has_no_such_limit_is_not_refused(digits: DatasetRecord) -> None:
    config = sweep(max_size_mb=1e-6)
    check_reach(config.replace(base=config.search.base.replace(pruning_of="size")), digits)
    check_reach(sweep(max_drop=0.0), digits)
