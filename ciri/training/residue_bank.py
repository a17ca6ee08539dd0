"""Samples of the residue detector with the frozen encoder's maps, computed once: only what is trained runs again.

Dimensions: n samples, m references, c channels, h w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ciri.residue.lite import Maps, ResidueNetwork, cell_indices, traces_of
from ciri.training.residue_data import Pool

#: Crops that are encoded together.
BATCH = 16
#: Label from which a deceived network is told that the residue was covered.
CLAIMED = 0.3
#: Residue area, of the box, from which a frame counts as one with residue, and below which as one without.
RESIDUE_FROM, CLEAN_BELOW = 0.01, 0.001


@dataclass
class Batch:
    """What a step needs: maps of search crops, of their references, their cell indices, and the answers.

    Attributes:
        filmed: maps of the search crops before the removal.
        hidden: (n, 1, s, s) in [0, 1], the masks of the removal; their cell indices are ``hidden_index``.
        traces: of the removal, (n, 2, h, w), see :func:`ciri.residue.lite.traces_of`.
        label, sure: (n, 1, h, w) in [0, 1] at the answers' size.
    """

    search: Maps
    reference: Maps
    index: list[list[tuple[Tensor, Tensor]]]
    filmed: Maps
    hidden: Tensor
    hidden_index: list[list[tuple[Tensor, Tensor]]]
    traces: Tensor
    label: Tensor
    sure: Tensor


class Bank:
    """Pools by sample number, encoded, in half precision.

    Args:
        network: whose encoder is used.
        keep_pictures: also hold the crops themselves, for pictures.
    """

    def __init__(self, network: ResidueNetwork, *, keep_pictures: bool = False) -> None:
        self.network, self.keep_pictures = network, keep_pictures
        self.files: list[Path] = []
        self.pools: list[Pool] = []
        self._search: list[tuple[Tensor, ...]] = []
        self._filmed: list[tuple[Tensor, ...]] = []
        self._traces: list[Tensor] = []
        self._hidden: list[list[list[tuple[Tensor, Tensor]]]] = []
        self._reference: list[tuple[Tensor, ...]] = []
        self._index: list[list[tuple[Tensor, Tensor]]] = []
        self._places: list[tuple[int, int]] = []
        self._first_target: list[int] = []
        self.size, self.soft, self.kind = torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        self.complete = torch.zeros(0, dtype=torch.bool)
        self.doubt = torch.zeros(0)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def with_residue(self) -> Tensor:
        """bool (n,)."""
        return self.size > RESIDUE_FROM

    @property
    def clean(self) -> Tensor:
        """bool (n,), nothing is left; a fill that may have copied a part of the target speaks against it."""
        return self.complete | ((self.soft < CLEAN_BELOW) & (self.doubt < CLEAN_BELOW))

    def add(self, file: Path) -> None:
        """Read and encode one pool file."""
        pool = Pool.load(file)
        self.files.append(file)
        self._search.append(self._encode(pool.search))
        self._filmed.append(self._encode(pool.filmed))
        crops = zip(*(getattr(pool, x).split(BATCH) for x in ("hidden", "filmed", "search")), strict=True)
        self._traces.append(torch.cat([traces_of(*(x.float() / 255 for x in part)).half() for part in crops]))
        self._hidden.append([cell_indices(mask) for mask in pool.hidden.float() / 255])
        # a view would keep all of it
        pool.filmed = pool.filmed[:0].clone()
        self._first_target.append(len(self._index))
        self._reference.append(self._encode(pool.reference))
        self._index += [cell_indices(mask) for mask in pool.mask.float() / 255]
        self._places += [(len(self.pools), i) for i in range(len(pool))]
        self.size = torch.cat([self.size, pool.size])
        self.soft = torch.cat([self.soft, pool.soft])
        # the search window has four times the area of the box
        self.doubt = torch.cat([self.doubt, 4 * (pool.sure < 128).float().mean((1, 2, 3))])
        self.kind = torch.cat([self.kind, pool.kind])
        self.complete = torch.cat([self.complete, pool.complete])
        if not self.keep_pictures:
            pool.search, pool.reference, pool.mask = (x[:0].clone() for x in (pool.search, pool.reference, pool.mask))
        self.pools.append(pool)

    @torch.no_grad()
    def _encode(self, crops: Tensor) -> tuple[Tensor, ...]:
        parts = [self.network.encode(part.float() / 255) for part in crops.split(BATCH)]
        return tuple(torch.cat([part[i].half() for part in parts]) for i in range(3))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the samples of these numbers."""
        places = [self._places[i] for i in numbers]
        targets = [int(self.pools[p].target[i]) for p, i in places]

        def maps(bank: list[tuple[Tensor, ...]], rows: list[tuple[int, int]]) -> Maps:
            f4, f8, f16 = (torch.stack([bank[p][scale][i] for p, i in rows]).float() for scale in range(3))
            return f4, f8, f16

        search, filmed = maps(self._search, places), maps(self._filmed, places)
        reference = maps(self._reference, [(p, t) for (p, _), t in zip(places, targets, strict=True)])
        index = [self._index[self._first_target[p] + t] for (p, _), t in zip(places, targets, strict=True)]
        answers = [torch.stack([getattr(self.pools[p], name)[i] for p, i in places]) for name in ("label", "sure")]
        label, sure = (F.avg_pool2d(x.float() / 255, x.shape[-1] // search[0].shape[-1]) for x in answers)
        hidden = torch.stack([self.pools[p].hidden[i] for p, i in places]).float() / 255
        hidden_index = [self._hidden[p][i] for p, i in places]
        traces = torch.stack([self._traces[p][i] for p, i in places]).float()
        return Batch(search, reference, index, filmed, hidden, hidden_index, traces, label, (sure > 0.5).float())

    def pictures(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return uint8 (3, s, s) search crop, reference crop, and (1, s, s) its mask, where they are kept."""
        pool, i = self.pools[self._places[number][0]], self._places[number][1]
        target = int(pool.target[i])
        return pool.search[i], pool.reference[target], pool.mask[target]


def respond(
    network: ResidueNetwork, batch: Batch, *, ignorant: Sequence[int] = (), deceived: Sequence[int] = ()
) -> Tensor:
    """Return the network's logits (n, 1, h, w) for a batch.

    Args:
        network: the detector's.
        batch: of n samples.
        ignorant: samples of which it is not told how the target was removed.
        deceived: samples of which it is told that what is left was covered as well: a mask is no proof of a removal.
    """
    hidden, index, traces = batch.hidden.clone(), list(batch.hidden_index), batch.traces.clone()
    for i in ignorant:
        hidden[i], traces[i] = 0, 0
    for i in deceived:
        left = F.interpolate(batch.label[i : i + 1], hidden.shape[-2:], mode="nearest")[0] >= CLAIMED
        hidden[i] = torch.maximum(hidden[i], F.max_pool2d(left.float(), 9, 1, 4))
        traces[i, :1] = F.avg_pool2d(hidden[i], hidden.shape[-1] // traces.shape[-1])
    for i in (*ignorant, *deceived):
        index[i] = cell_indices(hidden[i])
    now = [own for own, _ in network.remember(batch.filmed, index)]
    return network.respond(batch.search, network.remember(batch.reference, batch.index), now, traces)
