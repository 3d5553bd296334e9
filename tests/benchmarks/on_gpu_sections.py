"""The sections of `on_gpu.py`. Each imports what it needs: what is missing fails that section alone."""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(os.environ.get("OUT", tempfile.gettempdir()))
Flags = argparse.Namespace
CHAIN: dict[str, Any] = {
    "dataset": "digits",
    "flip": False,
    "batch_size": 64,
    "train_precision": "fp32",
    "deterministic": True,
    **dict.fromkeys(("teacher_model", "student_model"), "alexnet_small"),
    **dict.fromkeys(("teacher_epochs", "student_epochs", "recovery_epochs"), 1),
    **dict.fromkeys(("learning_rate", "teacher_learning_rate"), 1e-3),
    "pruning_method": "l1_unstructured",
    "pruning_ratio": 0.3,
}


def tell(section: str, **what: Any) -> None:
    """Print a result, and keep it."""
    line = json.dumps({"section": section, **what}, default=str)
    print(line, flush=True)
    with (OUT / "on_gpu.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _said(words: Sequence[object]) -> tuple[int, list[str]]:
    """Exit code and lines of a Python script, errors among them."""
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()


def environment(flags: Flags) -> None:
    """What machine this is, what NVML says, which runtimes are there, and the memory of a context."""
    import torch
    import torchvision

    from trainables.stages.models import placement
    from trainables.stages.models.devices.gpu import GpuState, gpu_name, measure_others_on_gpu
    from trainables.stages.runtimes.absence import count_cuda_devices, find_missing
    from trainables.stages.runtimes.base import RUNTIMES

    free, total = torch.cuda.mem_get_info()
    empty = total - free
    images = torch.rand(8, 3, 32, 32, device="cuda")
    features = torch.nn.Conv2d(3, 8, 3).cuda()(images).flatten(1)
    (features @ features.T).sum().item()
    free, total = torch.cuda.mem_get_info()
    tell(
        "env",
        gpu=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        python=sys.version.split()[0],
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        cudnn=torch.backends.cudnn.version(),
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        mps=shutil.which("nvidia-cuda-mps-control"),
        nvml_name=gpu_name(),
        nvml_state=GpuState.now(),
        others_share=measure_others_on_gpu(),
        devices=count_cuda_devices(),
        absent={name: missing for name in RUNTIMES if (missing := find_missing(name))},
        context_bytes=total - free - torch.cuda.memory_reserved(),
        context_bytes_empty=empty,
        context_bytes_assumed=placement.CONTEXT_BYTES,
    )


def gpu_tests(flags: Flags) -> None:
    """`pytest -m gpu`."""
    more = ["--co"] if flags.small else []
    code, lines = _said(["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *more])
    print("\n".join(lines[-60:]))
    tell("tests", exit_code=code, last=lines[-1:])
    raise SystemExit(code)


def same_as_cpu(flags: Flags) -> None:
    """Teacher, student and zeroed student on the GPU against the CPU; deterministic runs twice; streamed data."""
    plain = {"teacher_model": "resnet8", "student_model": "resnet8"}  # without dropout, whose numbers differ by device
    cpu, gpu = (_train(flags, device, **plain) for device in ("cpu", "cuda"))
    apart = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(cpu["losses"], gpu["losses"], strict=True))
    tell("same", case="CPU against GPU", apart=apart, cpu=cpu["losses"], gpu=gpu["losses"])
    for name, case in {
        "alexnet_small": {},
        "all augmentations": {"crop": "resized", "randaugment_magnitude": 9, "mixup_alpha": 0.2, "kd_loss": "dkd"},
    }.items():
        first, again, streamed = (_train(flags, "cuda", streamed=streamed, **case) for streamed in (False, False, True))
        equal = [first["digest"] == other["digest"] for other in (again, streamed)]
        tell("same", case=name, losses=first["losses"], rerun_equal=equal[0], streamed_equal=equal[1])


def _train(flags: Flags, device: str, *, streamed: bool = False, **changes: Any) -> dict[str, Any]:
    """Losses of all epochs of a small chain without structured cuts, and a digest of its weights."""
    import dataclasses

    import torch

    from trainables.config.candidate import CandidateConfig
    from trainables.stages.data.streaming import Streamed
    from trainables.stages.pruning.recovery import recover
    from trainables.stages.training.student import train_student
    from trainables.stages.training.teacher import train_teacher
    from trainables.stages.workspace import Bench

    limit = 64 if flags.small else 600
    config = CandidateConfig().replace(**(CHAIN | {"train_limit": limit} | changes))
    with tempfile.TemporaryDirectory() as folder:
        place = _workspace(config, device, Path(folder))
        bench = Bench.of(config.resolve(place.dataset(), device=device), place)
        if streamed:
            train = Streamed(bench.images.train_images.cpu(), torch.device(device, 0))
            bench = dataclasses.replace(bench, images=dataclasses.replace(bench.images, train_images=train))
        losses: list[float] = []

        def end(stage: Generator[Any, None, Any]) -> Any:
            while True:
                try:
                    epoch = next(stage)
                except StopIteration as over:
                    return over.value
                losses.extend((epoch.train_loss, epoch.val_loss))

        taught_by = end(train_teacher(bench))
        dense = end(train_student(bench, taught_by))
        zeroed = end(recover(bench, taught_by, dense, channel_ratio=0.0))
        digest = hashlib.sha256()
        for model in (taught_by, dense, zeroed):
            for value in torch.load(model.folder / "weights.pt").values():
                digest.update(value.contiguous().numpy().tobytes())
    return {"losses": [round(loss, 6) for loss in losses], "digest": digest.hexdigest()}


def _workspace(config: Any, device: str, folder: Path) -> Any:
    from trainables.stages.workspace import Workspace
    from trainables.store.results import Store

    settings: dict[str, Any] = {"data_dir": OUT / "data", "device": device, "threads": os.cpu_count() or 1}
    place = Workspace(store=Store(folder / "store"), data=config.data, lock_dir=folder / "locks", **settings)
    place.enter()
    return place


def waits(flags: Flags) -> None:
    """Whether a step waits for the GPU, which PyTorch then says by an error; its time by precision, and with graphs."""
    import torch

    for network in ("alexnet_small",) if flags.small else ("mobilenet_v3_small", "resnet18", "alexnet"):
        for precision, graphs in (("amp", False), ("fp32", False), ("amp", True), ("fp32", True)):
            trainer, steps = _trainer(network, precision, steps=2 if flags.small else 40, graphs=graphs)
            trainer.learn(1)
            host = time.process_time()
            started, waited = time.perf_counter(), ""
            try:
                torch.cuda.set_sync_debug_mode("error")
                for _ in trainer.steps(2):
                    pass
            except RuntimeError as error:
                waited = str(error).splitlines()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            host = time.process_time() - host
            torch.cuda.synchronize()
            took = {"ms_a_step": 1e3 * (time.perf_counter() - started) / steps, "host_ms_a_step": 1e3 * host / steps}
            tell("waits", network=network, precision=precision, graphs=graphs, waited=waited, **took)


def _trainer(network: str, precision: str, *, steps: int, graphs: bool) -> tuple[Any, int]:
    """A student's training on random images of 32 pixels in batches of 128."""
    import torch

    from trainables.config.candidate import AugmentConfig
    from trainables.config.training import TrainingConfig
    from trainables.stages.data.on_device import Images
    from trainables.stages.models.build import build_model
    from trainables.stages.training.lessons import Labels
    from trainables.stages.training.loop import Loop, Trainer

    pixels = torch.randint(0, 256, (128 * steps, 3, 32, 32), dtype=torch.uint8).cuda()
    labels, half = (torch.arange(len(pixels)) % 10).cuda(), torch.full((1, 3, 1, 1), 0.5, device="cuda")
    val = {"val_images": pixels[:100], "val_labels": labels[:100], "num_classes": 10}
    images = Images(train_images=pixels, train_labels=labels, mean=half, std=half, **val)
    training = TrainingConfig(batch_size=128, train_precision=precision)
    loop = Loop(stage="student", epochs=10**6, learning_rate=1e-3, training=training, augment=AugmentConfig())
    model = build_model(network, num_classes=10, image_size=32)
    return Trainer(model, loop, images, Labels(0.0), graphs=graphs), steps


def throughput(flags: Flags) -> None:
    """Images a second of the notebook's loop and of ours, at 32 and 224 pixels."""
    steps, batch = (1, 2) if flags.small else (30, 256)
    for size, models in ((224, ["mobilenet_v3_small"]), (32, ["resnet18", "mobilenet_v3_small"])):
        arms = ["notebook", "notebook-amp", "ours", "bare"] if size == 32 else ["notebook", "notebook-amp", "ours"]
        words = ["--device", "cuda", "--sizes", size, "--steps", steps, "--repeats", 1, "--batch-size", batch]
        code, lines = _said(["tests/benchmarks/train_throughput.py", *words, "--models", *models, "--arms", *arms])
        tell("throughput", size=size, exit_code=code, lines=lines)


def packing(flags: Flags) -> None:
    """Students trained on one GPU at once, each in a process of its own, as trials that share it."""
    from trainables.config.candidate import CandidateConfig
    from trainables.files import write_text
    from trainables.layout import TASK
    from trainables.records.encoding import to_json
    from trainables.records.probe import ProbeTask
    from trainables.stages.data import prepared

    config = CandidateConfig().replace(dataset="digits", flip=False, student_model="alexnet_small")
    prepared.prepare(config.data, OUT / "data")
    alone = 0.0
    for trials in (1, 2) if flags.small else (1, 2, 4, 8):
        cores = tuple(range(os.cpu_count() or 1))
        task = {"config": config.flat(), "data_dir": OUT / "data", "threads": 1, "memory_share": 1 / trials}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_text(folder / TASK, to_json(ProbeTask(device="cuda", cores=cores, **task)))
            command = [sys.executable, "-m", "trainables.stages.training.throughput", name]
            running = [subprocess.Popen([*command, str(i)], cwd=ROOT, stdin=subprocess.PIPE) for i in range(trials)]
            while not all((folder / f"{i}.ready").exists() for i in range(trials)):
                if any(process.poll() for process in running):
                    tell("packing", trials=trials, failed=[process.poll() for process in running])
                    return
                time.sleep(0.05)
            (folder / "go").touch()
            time.sleep(0.5 if flags.small else 5.0)
            (folder / "stop").touch()
            codes = [process.wait() for process in running]
            rows = [json.loads((folder / f"{i}.json").read_text()) for i in range(trials) if codes[i] == 0]
        total = sum(row["images"] / row["seconds"] for row in rows)
        alone = alone or total
        tell("packing", trials=trials, exit_codes=codes, images_per_s=total, times_one=total / alone)


def latency(flags: Flags) -> None:
    """Milliseconds of a call in PyTorch's runtimes at batch 1, 8 and 64; the median of those of one second."""
    import torch

    from trainables.stages.models.build import build_model
    from trainables.stages.models.weights import save_weights
    from trainables.stages.runtimes.base import AbsentError, Artifact
    from trainables.stages.runtimes.opening import open_runtime

    shape: dict[str, Any] = {"num_classes": 10, "image_size": 32 if flags.small else 224}
    with tempfile.TemporaryDirectory() as name:
        model, folder = build_model("mobilenet_v3_small", **shape).eval(), Path(name)
        save_weights(model, folder / "weights.pt")
        images = torch.rand(1, 3, shape["image_size"], shape["image_size"])
        torch.jit.trace(model, images).save(str(folder / "traced.pt"))
        files = {"onnx": folder / "none", "weights": folder / "weights.pt", "torchscript": folder / "traced.pt"}
        artifact = Artifact(**files, model_name="mobilenet_v3_small", **shape, mean=(0.5,) * 3, std=(0.5,) * 3)
        runtimes = ("eager_cuda", "cuda_graph", "torchscript_cuda", "torch_compile_cuda")
        for runtime in runtimes[: 2 if flags.small else None]:
            for batch in (1, 8, 64):
                try:
                    runner = open_runtime(runtime, artifact, threads=1, batch=batch).runner
                except (AbsentError, RuntimeError) as error:
                    tell("latency", runtime=runtime, batch=batch, absent=str(error).splitlines()[0])
                    continue
                for _ in range(20):
                    runner.run()
                times, until = list[float](), time.perf_counter() + (0.1 if flags.small else 1.0)
                while not times or time.perf_counter() < until:
                    began = time.perf_counter()
                    runner.run()
                    times.append(1e3 * (time.perf_counter() - began))
                tell("latency", runtime=runtime, batch=batch, p50_ms=statistics.median(times), n=len(times))


def teacher(flags: Flags) -> None:
    """A teacher and its students; 94 % on CIFAR-10's test images is the teacher's goal."""
    dataset = f"folder:{flags.cifar.resolve()}" if flags.cifar else "digits"
    words = ["--dataset", dataset, "--data-dir", OUT / "data", "--batch-size", 256, "--teacher-learning-rate", 0.2]
    words += ["--teacher-epochs", 15, "--student-epochs", 12, "--recovery-epochs", 4, *(["--steps", 2] * flags.small)]
    code, lines = _said(["tests/benchmarks/teacher_cifar10.py", *words])
    tell("teacher", exit_code=code, dataset=dataset, lines=lines)
    raise SystemExit(code)
