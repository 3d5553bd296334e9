"""The stand-in for a CUDA device, from within a process that runs on it (`make_device.py` builds it).

PyTorch's real CUDA host code runs on it: dispatch, checks of device and dtype, allocator, streams, events, sync-debug
mode, determinism alerts, fused optimisers, graph capture. Memory is the host's and copies copy; kernels are counted and
do nothing. With `computing()`, each ATen operation goes through all that, and then the CPU kernel's result is written
over its outputs, so that values are real.

It does not show: values and plans of cuDNN and cuBLAS, speed, races within kernels, NVML, MPS, TensorRT, ONNX Runtime's
CUDA provider, TorchScript on CUDA, more than one GPU.
"""

import collections
import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_lib = ctypes.CDLL(None)
PRESENT = hasattr(_lib, "nullgpu_count")
WAITS = ("stream_sync", "device_sync", "event_sync", "sync_copy")
"""Counters of calls in which the host waits for the device."""
NEVER = -1


def _names() -> Iterator[str]:
    _lib.nullgpu_name.restype = ctypes.c_char_p
    number = 0
    while (name := _lib.nullgpu_name(number)) is not None:
        yield name.decode()
        number += 1


NAMES = tuple(_names()) if PRESENT else ()
if PRESENT:
    _lib.nullgpu_count.restype = ctypes.c_long
    _lib.nullgpu_set_memory.argtypes = [ctypes.c_size_t]
    for planned in (_lib.nullgpu_fail_after_launches, _lib.nullgpu_refuse_after_allocations):
        planned.argtypes = [ctypes.c_long]


def counts() -> Mapping[str, int]:
    """What the runtime has been asked for since the process began."""
    return {name: _lib.nullgpu_count(number) for number, name in enumerate(NAMES)}


def since(before: Mapping[str, int]) -> dict[str, int]:
    """What the runtime has been asked for since `before`; zeros left out."""
    return {name: more for name, count in counts().items() if (more := count - before[name])}


@contextlib.contextmanager
def memory_of(total: int) -> Iterator[None]:
    """The device has so many bytes."""
    _lib.nullgpu_set_memory(total)
    try:
        yield
    finally:
        _lib.nullgpu_set_memory(80 << 30)


@contextlib.contextmanager
def out_of_memory_after(allocations: int) -> Iterator[None]:
    """The device gives memory so many times more, then none."""
    _lib.nullgpu_refuse_after_allocations(allocations)
    try:
        yield
    finally:
        _lib.nullgpu_refuse_after_allocations(NEVER)


@contextlib.contextmanager
def failing_after(launches: int) -> Iterator[None]:
    """The device runs so many kernels more, then every call fails, as after a fault of the hardware."""
    _lib.nullgpu_fail_after_launches(launches)
    try:
        yield
    finally:
        _lib.nullgpu_fail_after_launches(NEVER)


# ---- values

aten = torch.ops.aten


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor on the memory of a CUDA tensor."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_byte * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(whole, tensor.storage_offset(), tensor.size(), tensor.stride())


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _mapped(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The arguments or results of an operation with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _mapped(change, value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([_mapped(change, value) for value in tree])
    return tree


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(note, tree)
    return found


def _lowered(tree: Any) -> Any:
    return _mapped(lambda tensor: on_host(tensor) if _is_cuda(tensor) else tensor, tree)


def _batch_norm(*given: Any) -> Any:
    return aten.native_batch_norm.default(*given)  # without the memory that cuDNN reserves for the backward pass


def _batch_norm_backward(
    images: Any, grad: Any, weight: Any, mean: Any, var: Any, save_mean: Any, save_rstd: Any, eps: Any, reserve: Any
) -> Any:
    given = (grad, images, weight, mean, var, save_mean, save_rstd)
    return aten.native_batch_norm_backward.default(*given, True, eps, [True, True, True])


# operations that the CPU knows by another name
INSTEAD: Mapping[Any, Callable[..., Any]] = {
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm_backward.default: _batch_norm_backward,
}
# operations that compute nothing
NOTHING = {
    *(aten.record_stream.default, aten._local_scalar_dense.default, aten.is_pinned.default, aten.detach.default),
    *(aten.alias.default, aten.lift_fresh.default, aten.set_.source_Tensor, aten.set_.source_Storage),
    *(aten.set_.source_Storage_storage_offset, aten.resize_.default),
}
# operations whose shapes are values
DYNAMIC = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
EMPTY = {"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided"}
not_on_cpu: collections.Counter[str] = collections.Counter()
"""Operations without a CPU kernel, whose outputs stayed as they were."""
_graphs: dict[int, list[Callable[[], None]]] = {}
_capturing: list[list[Callable[[], None]]] = []
"""What the graph that is being captured computes; not by thread, because autograd captures in one of its own."""


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DYNAMIC and any(map(_is_cuda, _tensors((args, kwargs)))):
            func(*args, **kwargs)  # its checks, and its waiting
            return _mapped(Tensor.cuda, func(*_lowered(args), **_lowered(kwargs)))
        if func in INDEXED and _is_cuda(args[0]):
            args = self._without_masks(args)
        out = func(*args, **kwargs)
        if func is aten.equal.default and _is_cuda(args[0]):
            return func(*_lowered(args))
        if func in NOTHING or func._schema.name in EMPTY or func.is_view:
            return out
        if not any(map(_is_cuda, _tensors((args, kwargs, out)))):
            return out
        work = functools.partial(self._compute, func, args, kwargs, out)
        work()
        for graph in _capturing:
            graph.append(work)
        return out

    def _without_masks(self, args: Any) -> Any:
        """The arguments of an indexing with masks as numbers: how many is a value, for which CUDA waits."""
        indices = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
                continue
            aten.nonzero.default(index)
            plain = on_host(index) if _is_cuda(index) else index
            indices += [part.to(index.device) for part in plain.nonzero(as_tuple=True)]
        return (args[0], indices, *args[2:])

    def _compute(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        args, kwargs = _lowered(args), _lowered(kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs |= dict.fromkeys({"pin_memory", "non_blocking"} & kwargs.keys(), False)
        if func is aten.copy_.default:
            args = args[:2]
        try:
            result = INSTEAD.get(func, func)(*args, **kwargs)
        except NotImplementedError:
            not_on_cpu[str(func)] += 1
            return
        if func._schema.is_mutable:
            return  # done in place
        for there, value in zip(_tensors(out), _tensors(result), strict=func not in INSTEAD):
            if not value.numel() and there.numel():  # BatchNorm's statistics in evaluation, which nobody reads
                continue
            (on_host(there) if _is_cuda(there) else there).copy_(value)


_real_graph, _real_replay = torch.cuda.graph, torch.cuda.CUDAGraph.replay


class _RecordedGraph(contextlib.AbstractContextManager[None]):
    """`torch.cuda.graph`, which notes the operations so that a replay computes them."""

    def __init__(self, graph: Any, *args: Any, **kwargs: Any) -> None:
        self._graph, self._real = graph, _real_graph(graph, *args, **kwargs)

    def __enter__(self) -> None:
        self._real.__enter__()
        _graphs[id(self._graph)] = []
        _capturing.append(_graphs[id(self._graph)])

    def __exit__(self, *why: Any) -> None:
        _capturing.pop()
        self._real.__exit__(*why)


def _replay(graph: Any) -> None:
    _real_replay(graph)
    for work in _graphs.get(id(graph), []):
        work()


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Write what the CPU computes over every result of the device; only this thread's."""
    assert PRESENT, "this process does not run on the stand-in"
    torch.cuda.graph, torch.cuda.CUDAGraph.replay = _RecordedGraph, _replay  # type: ignore[assignment]  # stand-ins
    try:
        with _Computing():
            yield
    finally:
        torch.cuda.graph, torch.cuda.CUDAGraph.replay = _real_graph, _real_replay  # type: ignore[method-assign]  # back
