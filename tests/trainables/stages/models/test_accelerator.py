from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from trainables.config.checks import MachineError
from trainables.stages.models.devices import accelerator

CPU = torch.device("cpu")
HAS_ONE = torch.accelerator.is_available()


def test_the_cpu_has_a_plain_answer_to_everything() -> None:
    assert accelerator.find_device("cpu") == CPU and not accelerator.is_gpu(CPU)
    assert accelerator.open_stream(CPU) is None and not accelerator.has_graphs(CPU)
    accelerator.synchronize(CPU)
    accelerator.empty_cache()
    accelerator.forget_peak(CPU)
    free, total = accelerator.memory_info(CPU)
    assert 0 < free <= total
    assert 0 < accelerator.peak_bytes(CPU, kept=True) < total
    assert accelerator.reserved_bytes(CPU) == 0 and accelerator.memory_limit(CPU) == 1


@pytest.mark.skipif(HAS_ONE, reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_a_gpu_that_is_not_there_is_one_line(name: str) -> None:
    assert accelerator.count_gpus() == 0
    with pytest.raises(MachineError, match=f"device={name}: PyTorch finds no GPU here; take cpu"):
        accelerator.find_device(name)


def test_a_device_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(MachineError, match="device=tpu: PyTorch knows no such device; take cpu or gpu"):
        accelerator.find_device("tpu")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_ONE, reason="needs a GPU")
def test_a_gpu_goes_by_two_names() -> None:
    there = accelerator.find_device("gpu")
    assert there == accelerator.find_device(there.type) and accelerator.is_gpu(there)
    assert there.index == torch.accelerator.current_device_index() < accelerator.count_gpus()
    with pytest.raises(MachineError, match=f"device=meta: PyTorch finds {there.type} here; take cpu or gpu"):
        accelerator.find_device("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_ONE, reason="needs a GPU")
def test_two_threads_may_copy_on_one_stream_at_once() -> None:
    there = accelerator.find_device("gpu")
    stream = accelerator.open_stream(there)
    assert stream is not None

    def copy() -> torch.Stream:
        with accelerator.on_stream(stream):
            return torch.accelerator.current_stream(there)

    before = torch.accelerator.current_stream(there)
    with accelerator.on_stream(stream), ThreadPoolExecutor(1) as other:
        assert other.submit(copy).result() == torch.accelerator.current_stream(there) == stream
    assert torch.accelerator.current_stream(there) == before != stream


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_ONE, reason="needs a GPU")
def test_memory_is_counted_from_where_it_is_asked() -> None:
    there = accelerator.find_device("gpu")
    accelerator.forget_peak(there)
    kept = accelerator.reserved_bytes(there)
    tensor = torch.zeros(4 << 20, dtype=torch.uint8, device=there)
    del tensor
    assert accelerator.peak_bytes(there, kept=False) >= 4 << 20
    assert accelerator.peak_bytes(there, kept=True) >= kept + (4 << 20)
    accelerator.forget_peak(there)
    assert accelerator.reserved_bytes(there) == kept
