"""Training in several processes, as ``torchrun`` starts them: each works on its share of a batch.

Every process holds the whole network and starts from the same weights; gradients are averaged before each step, so the
weights stay equal. Losses are written so that the average over the processes is the loss of the whole batch: where one
divides by something counted in the batch (pixels of the region), the count is averaged over the processes first.

With one process everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ciri.errors import TrainingError

#: Numbers that are sent at once; small gradients travel together.
BUCKET = 1 << 24
#: How long processes that are done wait for one that still writes its results.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Team:
    """The processes of a training.

    Attributes:
        rank: this process, 0 .. size - 1.
        size: how many there are.
        device: what this one computes on.
    """

    rank: int
    size: int
    device: str

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


@contextmanager
def join(device: str) -> Iterator[Team]:
    """Meet the other processes; leave them at the end.

    Args:
        device: "cpu", "cuda", ...; of several GPUs each process takes the one of its local rank.

    Raises:
        TrainingError: what ``torchrun`` sets is incomplete, or there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield Team(0, 1, device)
        return
    kind = torch.device(device).type
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise TrainingError(f"WORLD_SIZE is set but not {error}; start several processes with torchrun.") from error
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"There are {torch.cuda.device_count()} GPUs, too few for process {local}; "
                "give torchrun one process for each GPU (--nproc_per_node)."
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    store, rank, size = next(dist.rendezvous("env://", rank, size))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield Team(rank, size, device)
        _leave_together(store, rank, size)
    finally:
        dist.destroy_process_group()


def _leave_together(store: dist.Store, rank: int, size: int) -> None:
    """Return when all processes have heard the last of the others.

    One that closes its connections while another still writes its results, or still reads from them, aborts that one.
    A barrier is not enough: whoever passes it first closes connections that the others wait at.
    """
    store.set(f"done {rank}", "")
    store.wait([f"done {other}" for other in range(size)], PATIENCE)
    store.set(f"gone {rank}", "")
    if rank == 0:  # it may hold the store that the others have just asked
        store.wait([f"gone {other}" for other in range(size)], PATIENCE)


def team_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when all processes are here."""
    if team_size() > 1:
        dist.barrier()


def team_mean(count: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without gradient; the tensor itself where there is one process."""
    size = team_size()
    if size == 1:
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / size


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes; one that is missing in some of them counts as 0 there."""
    size = team_size()
    if size == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    # what has a gradient nowhere must stay without: optimisers decay the weights of what has one
    present = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(present)
    gradients = []
    for parameter, somewhere in zip(trained, present.tolist(), strict=True):
        if somewhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= size
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    filled = 0
    for gradient in gradients:
        if bucket and (filled + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(gradient)
        filled += gradient.numel()
    if bucket:
        yield bucket


def agree(values: Iterable[bool], device: torch.device | str) -> list[bool]:
    """All processes take the first one's decisions."""
    own = list(values)
    if team_size() == 1:
        return own
    flags = torch.tensor([float(value) for value in own], device=device)
    dist.broadcast(flags, 0)
    return [bool(flag) for flag in flags.tolist()]


def mean_values(values: Mapping[str, float], device: torch.device | str) -> dict[str, float]:
    """Means over the processes of numbers by name; all give the same names."""
    if team_size() == 1 or not values:
        return dict(values)
    numbers = team_mean(torch.tensor(list(values.values()), dtype=torch.float32, device=device)).tolist()
    return dict(zip(values, numbers, strict=True))
