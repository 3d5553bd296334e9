import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainables.config.training import TrainingConfig
from trainables.stages.models import placement
from trainables.stages.models.build import build_model
from trainables.stages.models.devices import accelerator
from trainables.stages.models.placement import autocast, compile_model, layout, move, set_up_kernels, to_machine_error

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")


class Viewing(nn.Module):
    """Flattens a feature map with `view`, as many hand-written networks do: refuses channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.head(features.view(len(features), -1))


@pytest.mark.parametrize("name", ["alexnet_small", "resnet18", "mobilenet_v3_small"])
def test_channels_last_changes_the_layout_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    before = model(images)
    random = torch.get_rng_state()
    move(model, CPU, image_size=32)
    assert layout(model) is torch.channels_last
    assert torch.equal(torch.get_rng_state(), random)
    after = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max().detach()))


def test_a_network_that_views_its_feature_map_stays_as_it_is() -> None:
    model = Viewing().train()
    move(model, CPU, image_size=8)
    assert layout(model) is torch.contiguous_format
    assert model.training
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_a_network_that_fails_for_another_reason_says_so() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        move(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)), CPU, image_size=8)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("amp", torch.bfloat16)])
def test_train_precision_decides_what_a_layer_computes_in(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, TrainingConfig(train_precision=precision)):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_determinism_is_of_one_training_not_of_the_process() -> None:
    set_up_kernels(CPU, TrainingConfig(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    set_up_kernels(CPU, TrainingConfig())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("on", [True, False])
def test_tf32_is_read_the_same_through_every_switch_of_torch(on: bool) -> None:
    """torch.compile reads the older ones, which raise where only the newer are set."""
    accelerator.allow_tf32(on)
    try:
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == on
        assert (torch.get_float32_matmul_precision() == "high") == on
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == on
    finally:
        accelerator.allow_tf32(False)


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    text = (
        "put_cuda does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'"
    )
    assert str(to_machine_error(RuntimeError(text))) == (
        "deterministic=True: put_cuda has no deterministic form; leave it out or take another model."
    )
    assert to_machine_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_the_compiler_has_no_more_workers_than_a_trial_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    for name in ("TORCHINDUCTOR_COMPILE_THREADS", "OMP_NUM_THREADS"):  # as they are after the test
        monkeypatch.setenv(name, "64")
    before = torch.get_num_threads()
    try:
        placement.set_up_process("cpu", threads=3)
        assert config.decide_compile_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_compile_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    model = nn.Linear(2, 2)
    assert compile_model(model, TrainingConfig()) is model
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(ValueError, match=r"compile=True: torch.compile needs a C\+\+ compiler; install g\+\+"):
        compile_model(model, TrainingConfig(compile=True))


def test_compiled_code_is_not_taken_from_where_others_write(tmp_path: Path) -> None:
    """A folder below /tmp with a name that can be guessed may be somebody else's, and its code would be run."""
    code = """import {}; from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())"""
    kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    for module, told, found in (
        ("sweeps.kd_prune", {}, ".cache/torchinductor"),
        ("trainables.stages.candidate.__main__", {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "x")}, "x"),
        ("trainables.stages.candidate.__main__", {}, ".cache/torchinductor"),
    ):
        command = [sys.executable, "-c", code.format(module)]
        env = kept | {"HOME": str(tmp_path)} | told
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == str(tmp_path / found), done.stderr


def test_shares_of_a_gpu_leave_room_for_the_contexts_of_all() -> None:
    whole = 80 * 2**30
    for trials in (2, 4, 8, 16):
        tensors = placement.tensor_share(1 / trials, whole) * whole
        assert trials * (tensors + placement.CONTEXT_BYTES) == pytest.approx(whole)
    assert placement.tensor_share(1.0, whole) == 1.0
    assert placement.tensor_share(0.05, 8 * 2**30) == 0.025  # a share smaller than a context still trains something


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_freed_memory_is_kept_and_given_back() -> None:
    """A 64 MB tensor made again costs no page fault where memory is kept; release_memory returns it to the system."""
    script = """
import resource, torch
from trainables.stages.models import placement
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
placement.set_up_process("cpu", threads=1)
for _ in range(12):  # the heap settles after two to seven
    torch.ones(16 << 20)
before = faults()
for _ in range(5):
    torch.ones(16 << 20)
again, held = faults() - before, resident()
placement.release_memory()
print(again, held - resident())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    again, returned = map(int, result.stdout.split())
    assert again < 5 * (64 << 20) / 4096 / 10  # without it: every page of every tensor, 81920
    assert returned > 32 << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp32_means_fp32_on_a_gpu_and_memory_is_capped() -> None:
    set_up_kernels(torch.device("cuda"), TrainingConfig(train_precision="fp32"))
    a, b = torch.rand(512, 512, device="cuda"), torch.rand(512, 512, device="cuda")
    torch.testing.assert_close((a @ b).cpu().double(), a.cpu().double() @ b.cpu().double(), rtol=1e-5, atol=1e-4)
    placement.set_up_process("cuda", threads=1, memory_share=0.01)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(torch.cuda.mem_get_info()[1] // 20, dtype=torch.uint8, device="cuda")
    finally:
        placement.set_up_process("cuda", threads=1)


def test_devices_are_numbered_as_nvml_does_before_anything_asks_for_them() -> None:
    script = "import os, torch, trainables.stages.candidate.__main__; print(os.environ['CUDA_DEVICE_ORDER'])"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_ORDER"}
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.strip() == "PCI_BUS_ID"
