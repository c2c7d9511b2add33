"""A GPU that is pretended, on a machine without one: tensors that say they lie there and have no data.

torch's fake tensors follow shapes and devices, and refuse operations across devices as a GPU does.
What would make the host wait for the GPU is noted. Two things are beyond it: numbers, and the
backward pass, whose threads torch starts for real devices only; weights get gradients without data.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dsd_lab.core import randomness
from dsd_lab.core.data import DataSet
from dsd_lab.core.data.splits import Images

GPU = torch.device("cuda")
_SOURCE = str(Path(randomness.__file__).parents[1])
_aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Sees every operation; `waits` has the place of each that makes the host wait for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._asked = 0

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_SOURCE)]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}: {ours[-1].line}" if ours else "elsewhere"
        self.waits.append(f"{what} at {where}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(isinstance(a, Tensor) and a.is_cuda for a in args)
        if func is _aten._local_scalar_dense.default:
            if there:
                self.note("a number is read")
                self._asked += 1
            # A condition holds every other time that it is asked of the GPU, so that loops run and end.
            condition = not there or self._asked % 2 == 1
            return condition if args[0].dtype == torch.bool else args[0].dtype.is_floating_point + 1
        if func is _aten.nonzero.default:
            if there:
                self.note("places are found")
            return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is _aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            if there:
                self.note("a mask selects")  # how many is known when the GPU has counted them: all of them, here
            whole = [torch.arange(len(i), device=i.device) if i is not None else None for i in args[1]]
            return func(args[0], whole)
        if func in (_aten.stack.default, _aten.cat.default) and len({part.device.type for part in args[0]}) > 1:
            # Fake tensors let a number of the CPU in, as most operations of a GPU do; these two do not.
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        result = func(*args, **kwargs)
        if func in (_aten._to_copy.default, _aten.copy_.default):
            sides = {a.device.type for a in (*args, result) if isinstance(a, Tensor)}
            asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if len(sides) > 1 and not asked:
                self.note("a copy is waited for")
        return result


class _Generator(torch.Generator):
    """One of the CPU that says where it was asked to be."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.asked = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.asked


class _Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _grad(loss: Tensor, inputs: Tensor | list[Tensor], **_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(i) for i in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _backward(loss: Tensor) -> None:
    """Give a gradient to every weight that the loss reaches."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if (weight := getattr(node, "variable", None)) is not None:
            weight.grad = torch.empty_like(weight)


_Parameter, _tensor = torch.nn.Parameter, torch.tensor


def _there(tensor: Tensor, device: torch.device | None) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """`Tensor.__deepcopy__`, which copies the storage of some fake tensors, where there is none."""
    return memo.setdefault(id(tensor), _there(tensor, tensor.device))


def _to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """`Module.to`, which cannot swap what is fake for what is not."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = _Parameter(_there(weight, device), weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _there(buffer, device)
    return module


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Watch]:
    """Within, `GPU` can be trained on as far as devices and shapes go."""
    watch = Watch()

    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        if device is not None and torch.device(device).type == GPU.type:
            watch.note("a tensor is made of Python numbers")
        return _there(_tensor(data, dtype=dtype), device)  # torch would compute with numbers that it knows

    with contextlib.ExitStack() as stack:
        randomness._order.cache_clear()  # whose tensors have data
        stack.callback(randomness._order.cache_clear)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for name, value in {
            "torch.Generator": _Generator,
            "torch.tensor": tensor,
            "torch.Tensor.__deepcopy__": _deepcopy,
            "torch.nn.Module.to": _to,
            "torch.autograd.grad": _grad,
            "torch.Tensor.backward": _backward,
            "torch.cuda.Event": _Event,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_: True,
            "torch.cuda.mem_get_info": lambda _: (2**40, 2**40),
        }.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(watch)
        yield watch


def without_numbers(data: DataSet) -> DataSet:
    """The same images as far as shapes go, made within `pretended_gpu`."""
    splits = {"train": data.train, "holdout": data.holdout}
    empty = {k: Images(torch.empty_like(s.pixels), torch.empty_like(s.labels)) for k, s in splits.items()}
    return replace(data, **empty)
