"""Views on a GPU, in a file of their own: what other tests of views import, a bare machine with a GPU does not have."""

import pytest
import torch
from sample_views import CONFIGS, IMAGES, NUM_SAMPLES, SIZE, views

from trainables.stages.data.augment.views import Views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_gives_the_same_views(name: str) -> None:
    index = torch.arange(NUM_SAMPLES)
    on_gpu = views(CONFIGS[name], 1)
    actual = on_gpu.batch(IMAGES.cuda(), index)
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), views(CONFIGS[name], 1).batch(IMAGES, index), atol=2 / 255, rtol=0)
    part = on_gpu.batch(IMAGES.cuda(), index[5:9].cuda())
    assert torch.equal(part, actual[5:9])
    from_cpu = Views(CONFIGS[name], num_samples=NUM_SAMPLES, epoch=1, image_size=SIZE, device="cuda")
    assert torch.equal(from_cpu.batch(IMAGES, index), actual)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_view_waits_for_the_gpu(name: str) -> None:
    images, index, on_gpu = IMAGES.cuda(), torch.arange(8), views(CONFIGS[name], 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            on_gpu.batch(images, index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
