"""A graphics card that is not there: tensors say that they are on ``cuda``, and are computed on the processor.

On a machine without a graphics card nothing else finds out that two tensors would have met on different devices, that
an array was taken of a tensor that NumPy cannot see, or that half precision reached an operation that refuses it.
What is known of a tensor is kept with its storage, as the real device is, so that views and parameters share it.

Not pretended: kernels, their speed and rounding, streams, memory. Of threads started inside, those of a pool see the
card; others see ordinary tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
#: Operations that take tensors of several devices.
MIXING = {
    torch.ops.aten.copy_.default,
    torch.ops.aten.set_.source_Storage,
    torch.ops.aten.set_.source_Tensor,
}
#: Operations that do not even take single numbers from the processor.
STRICT = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}
#: Operations whose second argument, an index, may be on the processor.
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class OnGPU:
    """Which storages are on the pretended card."""

    def __init__(self) -> None:
        self._storages: dict[int, StorageWeakRef] = {}

    def put(self, x: Tensor, there: bool) -> Tensor:
        storage = x.untyped_storage()
        if there:
            self._storages[storage._cdata] = StorageWeakRef(storage)
        else:
            self._storages.pop(storage._cdata, None)
        return x

    def __contains__(self, x: Tensor) -> bool:
        # a reference that has expired keeps its number from being given to another storage
        known = self._storages.get(x.untyped_storage()._cdata)
        return known is not None and not known.expired()


class Kernels(TorchDispatchMode):
    """Below autograd and autocast: refuses tensors of two devices, and says where results are."""

    def __init__(self, on_gpu: OnGPU) -> None:
        super().__init__()
        self.on_gpu = on_gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(x in self.on_gpu for x in given)
        if there and func not in MIXING:
            judged = [args[0], *args[2:3]] if func in INDEXING else given
            if "embedding_bag" in func.name():
                # PyTorch makes its offsets on the card, where it is not watched here
                judged = [x for x in judged if x.is_floating_point()]
            if any(x not in self.on_gpu and (x.ndim > 0 or func in STRICT) for x in judged):
                shapes = [f"{tuple(x.shape)} on {'cuda' if x in self.on_gpu else 'cpu'}" for x in judged]
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} was given {shapes}")
        result = func(*args, **(kwargs or {}))
        if there and func not in MIXING:
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self.on_gpu.put(x, True)
        return result


class Move(torch.autograd.Function):
    """A copy on the other device; its gradient comes back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, on_gpu: OnGPU) -> Tensor:
        ctx.on_gpu, ctx.was_there = on_gpu, x in on_gpu
        return on_gpu.put(x.clone(), not ctx.was_there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.on_gpu.put(gradient.clone(), ctx.was_there), None


class Interface(TorchFunctionMode):
    """What Python calls: devices by name, and what a tensor says of its own."""

    def __init__(self, on_gpu: OnGPU) -> None:
        super().__init__()
        self.on_gpu = on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor):
            x, there = args[0], args[0] in self.on_gpu
            if func == Tensor.device.__get__:
                return GPU if there else CPU
            if func == Tensor.is_cuda.__get__:
                return there
            if func in (Tensor.numpy, Tensor.__array__) and there:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if func in (Tensor.cpu, Tensor.cuda):
                return self.moved(x, func is Tensor.cuda)
            if func is Tensor.to:
                return self.to(x, *args[1:], **kwargs)
            if func is Tensor.new_tensor:
                kwargs.setdefault("device", GPU if there else CPU)
        device = None if func is torch._C._nn._parse_to else kwargs.pop("device", None)
        made = func(*args, **kwargs)
        if device is None:
            return made
        there = torch.device(device).type == "cuda"
        return self.moved(made, there) if func in (torch.as_tensor, torch.asarray) else self.on_gpu.put(made, there)

    def moved(self, x: Tensor, there: bool) -> Tensor:
        """The tensor itself where it is there already, else a copy."""
        return x if there == (x in self.on_gpu) else Move.apply(x, self.on_gpu)

    def to(self, x: Tensor, *args: Any, copy: bool = False, other: Tensor | None = None, **kwargs: Any) -> Tensor:
        """``Tensor.to`` in all its forms."""
        if args and isinstance(args[0], Tensor):
            other, args = args[0], args[1:]
        if other is not None:
            args = (GPU if other in self.on_gpu else CPU, other.dtype, *args)
        device, dtype, in_passing, layout = torch._C._nn._parse_to(*args, **kwargs)
        if in_passing and device == CPU and x in self.on_gpu:
            raise RuntimeError("a copy to the processor that nobody waits for may be read before it has arrived")
        options = {"memory_format": layout} if layout is not None else {}
        result = x.to(dtype or x.dtype, copy=copy, **options)
        return result if device is None else self.moved(result, device.type == "cuda")


class Autocast(torch.autocast):
    """What the card would do in half precision, the processor does."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Generator(torch.Generator):
    """One of the processor's that says it is the card's."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._said = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._said


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, ``cuda`` is a device of compute capability 8.0; yields it."""
    on_gpu = OnGPU()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.autocast", Autocast))
        stack.enter_context(mock.patch("torch.Generator", Generator))
        answers = {
            "get_device_capability": (8, 0),
            "get_device_name": "a pretended GPU",
            "max_memory_allocated": 0,
            "mem_get_info": (2**34, 2**34),
            "memory_stats": {"active_bytes.all.current": 0, "reserved_bytes.all.current": 0},
            "reset_peak_memory_stats": None,
            "synchronize": None,
        }
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", return_value=answer))
        submit = ThreadPoolExecutor.submit

        def submit_with_card(pool: ThreadPoolExecutor, work: Any, *args: Any, **kwargs: Any) -> Future[Any]:
            def there() -> Any:
                # PyTorch's modes belong to a thread
                with Kernels(on_gpu), Interface(on_gpu):
                    return work(*args, **kwargs)

            return submit(pool, there)

        stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", submit_with_card))
        stack.enter_context(Kernels(on_gpu))
        stack.enter_context(Interface(on_gpu))
        yield GPU
