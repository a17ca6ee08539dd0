"""Which floating-point type a network runs in, and a copy of it that does.

Half the bits are several times the speed where the processor multiplies them natively (AMX, AVX512-BF16, tensor
cores) and slower than float32 elsewhere, so the processor is asked by a short measurement, not by its name. Graphics
cards say by their compute capability what they multiply natively, but for a few that get it wrong.
"""

from __future__ import annotations

import copy
import itertools
import re
import time
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ciri.errors import CiriError
from ciri.packed import pack_convolutions
from ciri.winograd import replace_convolutions

#: What a person may ask for.
PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: bf16 has to be this much faster than float32 to be worth its rounding.
WORTH_IT = 1.3

#: Compute capability from which fp16 is fast; on most older cards it runs at a 64th of the speed of float32.
FAST_FP16 = (7, 0)
#: Names of cards of capability 7.5 without tensor cores, known to go wrong in fp16 (the same that ComfyUI excepts).
BROKEN_FP16 = r"\b(GTX 16[356]0|T500|T550|T600|T1000|T1200|T2000|MX450|MX550|CMP 30HX)\b"

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type to compute in on this device.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".

    Raises:
        CiriError: another word.
    """
    if precision not in PRECISIONS:
        raise CiriError(f"Precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
    asked = PRECISIONS[precision]
    if asked is not None:
        return asked
    if device.type == "cuda":
        return _fast_on_card(device)
    if device.type == "cpu" and cpu_speedup_of_bfloat16(torch.get_num_threads()) >= WORTH_IT:
        return torch.bfloat16
    return torch.float32


def _fast_on_card(device: torch.device) -> torch.dtype:
    """What a graphics card computes fastest in without going wrong; asking costs nothing, so nothing is measured."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    if capability < FAST_FP16 or re.search(BROKEN_FP16, torch.cuda.get_device_name(device)):
        return torch.float32
    return torch.float16


@lru_cache
def cpu_speedup_of_bfloat16(threads: int) -> float:
    """How many times faster this processor convolves in bfloat16 than in float32; measured once, about 50 ms.

    Args:
        threads: the thread count it is measured with (part of the cache's key only).
    """
    weight = torch.ones(128, 128, 3, 3)
    image = torch.ones(1, 128, 30, 54)
    seconds = {dtype: _seconds(image.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


@torch.no_grad()
def _seconds(image: Tensor, weight: Tensor) -> float:
    image, weight = (x.contiguous(memory_format=torch.channels_last) for x in (image, weight))
    best = float("inf")
    # the first runs compile the kernel; the best of the others is the least disturbed by other programs
    for run in range(6):
        start = time.perf_counter()
        F.conv2d(image, weight, padding=1)
        if run >= 2:
            best = min(best, time.perf_counter() - start)
    return best


def fingerprint(module: nn.Module) -> int:
    """A number that changes whenever a weight does: the sum of the bit patterns, with their place in the module."""
    total = 0
    for place, tensor in enumerate([*module.parameters(), *module.buffers()]):
        bits = tensor.detach().contiguous().flatten()
        # eight bytes at a time: ten times as fast as what fits any length
        whole = bits.numel() * bits.element_size() % 8 == 0
        bits = bits.view(torch.int64 if whole else {1: torch.int8, 2: torch.int16, 4: torch.int32}[bits.element_size()])
        total += (2 * place + 1) * int(bits.sum(dtype=torch.int64))
    return total


def inference_copy(network: ModuleT, device: torch.device, dtype: torch.dtype) -> ModuleT:
    """Return a copy for inference: batch normalisation folded into the convolutions, channels_last, cast.

    On the CPU its convolutions keep their weights as the processor reads them in bfloat16, and in float32 those of
    3x3 become Winograd's, but in the children that the network names in ``seldom_used``: there the larger weights are
    not worth it.

    The network itself stays as it is: its float32 weights are what refinement tunes and what is saved.
    """
    twin = copy.deepcopy(network).eval().requires_grad_(False)
    _fold_batch_norm(twin)
    twin.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu" and dtype == torch.float32:
        replace_convolutions(twin, keep=getattr(network, "seldom_used", ()))
    if device.type == "cpu" and dtype == torch.bfloat16:
        pack_convolutions(twin)
    return twin


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold each norm that directly follows a convolution: neighbours in a Sequential, or named convX and bnX."""
    children = dict(module.named_children())
    names = list(children)
    pairs = [(f"conv{n[2:]}", n) for n in names if n.startswith("bn")]
    if isinstance(module, nn.Sequential):
        pairs += list(itertools.pairwise(names))
    for first, second in pairs:
        conv, norm = children.get(first), children[second]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(conv, norm))
            setattr(module, second, nn.Identity())
    for child in module.children():
        _fold_batch_norm(child)
