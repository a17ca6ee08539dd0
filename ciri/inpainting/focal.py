"""Temporal focal transformer blocks (E2FGVI, Li et al., CVPR 2022; focal attention after Yang et al., NeurIPS 2021).

The token grid is cut into windows of 5 x 9. A window attends to its own tokens, to a ring of neighbours (cyclic at
the borders), and to pooled tokens of the windows around it, each over all T frames.

The published form builds four shifted copies of keys and values and masks what lies outside. Here each block makes
one table of keys and values - all tokens, then all pooled ones - and every window gathers its rows by an index list:
the same keys, without those that the published form gives a weight of exp(-100).

Dimensions: B clips, T frames, Q frames with queries (the first Q of T), gh gw token grid, W windows, D width, M heads.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ciri.inpainting.attention import attention
from ciri.inpainting.soft_split import TAPS, fusion_feed_forward

#: Tokens along the height and the width of a window.
WINDOW = (5, 9)

#: Tokens of one window in one frame.
AREA = WINDOW[0] * WINDOW[1]

#: How far the ring reaches, in tokens.
REACH = (WINDOW[0] // 2, WINDOW[1] // 2)

#: The published order of the shifts that make the ring: down right, down left, up right, up left.
SHIFTS = ((1, 1), (1, -1), (-1, 1), (-1, -1))

#: Queries times keys of one call of the attention; more windows than this allows are done in several calls. On a
#: processor one window at a time is fastest: its gathered keys stay in the cache.
CACHED_PRODUCTS, MOST_PRODUCTS = 1 << 21, 1 << 28


def ring_positions() -> list[int]:
    """Positions of the ring as flat indices into the stack of the four shifted windows (4 * 45).

    A shifted window contributes what lies outside the unshifted one. Twelve positions appear in two of the shifts,
    and count twice in the softmax.
    """
    height, width = WINDOW
    kept = []
    for index, (dy, dx) in enumerate(SHIFTS):
        for y, x in product(range(height), range(width)):
            inside = 0 <= y + dy * REACH[0] < height and 0 <= x + dx * REACH[1] < width
            if not inside:
                kept.append(index * AREA + y * width + x)
    return kept


@lru_cache(maxsize=8)
def key_indices(grid: tuple[int, int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Which rows of the table each window attends to, windows with equally many keys together.

    Args:
        grid: (gh, gw), multiples of 5 and 9.
        device: where the lists are needed.

    Returns:
        Pairs (windows, keys): window numbers (n,), row by row, and for each its rows (n, k) of one frame's table,
        which holds gh * gw tokens and then one pooled token per window.
    """
    height, width = WINDOW
    rows, columns = grid[0] // height, grid[1] // width
    ring = ring_positions()
    groups: dict[int, tuple[list[int], list[list[int]]]] = {}
    for window, (row, column) in enumerate(product(range(rows), range(columns))):
        offsets = [(y, x) for y, x in product(range(height), range(width))]
        shifted = [(y + dy * REACH[0], x + dx * REACH[1]) for dy, dx in SHIFTS for y, x in offsets]
        seen = offsets + [shifted[position] for position in ring]
        tokens = [(row * height + y) % grid[0] * grid[1] + (column * width + x) % grid[1] for y, x in seen]
        # the pooled neighbourhood has as many windows as a window has tokens
        near_rows = range(max(0, row - height // 2), min(rows, row + height // 2 + 1))
        near_columns = range(max(0, column - width // 2), min(columns, column + width // 2 + 1))
        pooled = [grid[0] * grid[1] + r * columns + c for r, c in product(near_rows, near_columns)]
        windows, keys = groups.setdefault(len(pooled), ([], []))
        windows.append(window)
        keys.append(tokens + pooled)
    # cached, so it must not be born in inference mode: autograd could not keep it later
    with torch.inference_mode(False):
        return [
            (torch.tensor(windows, device=device), torch.tensor(keys, device=device))
            for windows, keys in groups.values()
        ]


def to_windows(x: Tensor) -> Tensor:
    """(B, T, gh, gw, D) to (B, W, T * 45, D)."""
    return rearrange(x, "b t (r y) (c x) d -> b (r c) (t y x) d", y=WINDOW[0], x=WINDOW[1])


def from_windows(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, W, T * 45, D) to (B, T, gh, gw, D)."""
    return rearrange(x, "b (r c) (t y x) d -> b t (r y) (c x) d", r=grid[0] // WINDOW[0], y=WINDOW[0], x=WINDOW[1])


class FocalAttention(nn.Module):
    """Attention of windows to their own tokens, their ring and pooled windows."""

    valid_ind_rolled: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # published files carry the ring's positions; they follow from the window, and key_indices derives them
        self.register_buffer("valid_ind_rolled", torch.tensor(ring_positions()))

    def forward(self, tokens: Tensor, pooled: Tensor, queries: int) -> Tensor:
        """Attend.

        Args:
            tokens: (B, T, gh, gw, D), normalised.
            pooled: (B, T, gh / 5, gw / 9, D).
            queries: Q, how many of the frames ask; all T answer.

        Returns:
            (B, W, Q * 45, D), in window order.
        """
        grid = (tokens.shape[2], tokens.shape[3])
        width = self.proj.in_features
        query = to_windows(F.linear(tokens[:, :queries], self.qkv.weight[:width], self.qkv.bias[:width]))
        everything = torch.cat([tokens.flatten(2, 3), pooled.flatten(2, 3)], 2)
        table = F.linear(everything, self.qkv.weight[width:], self.qkv.bias[width:])
        return self.proj(self.attend(query, table, grid))

    def attend(self, query: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """Softmax attention of query (B, W, q, D) to table (B, T, rows of a frame, 2 D) by the windows' key lists."""
        frames, rows = table.shape[1:3]
        first_rows = rows * torch.arange(frames, device=table.device)[:, None]
        budget = CACHED_PRODUCTS if table.device.type == "cpu" else MOST_PRODUCTS
        parts, order = [], []
        for windows, keys in key_indices(grid, table.device):
            some = max(1, budget // (len(query) * query.shape[2] * frames * keys.shape[1]))
            for chosen, listed in zip(windows.split(some), keys.split(some), strict=True):
                index = (listed[:, None] + first_rows).flatten()
                order.append(chosen)
                parts.append(self.attend_some(query[:, chosen], table.flatten(1, 2).index_select(1, index)))
        return torch.cat(parts, 1)[:, torch.cat(order).argsort()]

    def attend_some(self, query: Tensor, gathered: Tensor) -> Tensor:
        """Attention of a few windows: query (B, n, q, D), gathered (B, n * keys, 2 D)."""
        b, n = query.shape[:2]
        q = rearrange(query, "b n q (m d) -> (b n) m q d", m=self.heads)
        k, v = rearrange(gathered, "b (n k) (two m d) -> two (b n) m k d", n=n, two=2, m=self.heads)
        answer = attention(q, k, v)
        return rearrange(answer, "(b n) m q d -> b n q (m d)", b=b)


class FusionFeedForward(nn.Module):
    """FuseFormer's feed-forward layer with GELU; the nesting is that of the weight files."""

    def __init__(self, width: int, hidden: int = 40 * TAPS) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Linear(width, hidden))
        self.conv2 = nn.Sequential(nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, gh, gw, D) to the same; ``size`` is that of the features."""
        expand, contract = self.conv1[0], self.conv2[1]
        assert isinstance(expand, nn.Linear) and isinstance(contract, nn.Linear)
        return fusion_feed_forward(tokens, expand, contract, size, F.gelu)


class FocalBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); the residual stream stays float32."""

    def __init__(self, width: int = 512, heads: int = 4) -> None:
        super().__init__()
        self.pool_layers = nn.ModuleList([nn.Linear(AREA, 1)])
        self.norm1 = nn.LayerNorm(width)
        self.attn = FocalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FusionFeedForward(width)

    def forward(self, x: Tensor, size: tuple[int, int], queries: int | None = None, chunk: int = 8) -> Tensor:
        """Transform tokens (B, T, gh, gw, D) of features of the given size.

        Args:
            queries: only the first so many frames are asked for; (B, queries, gh, gw, D) is returned.
            chunk: frames of the feed-forward layer done at a time.
        """
        queries = x.shape[1] if queries is None else queries
        grid = (x.shape[2], x.shape[3])
        normed = self.norm1(x)
        x = x[:, :queries] + from_windows(self.attn(normed, self.pool(normed), queries), grid)
        flat = x.flatten(0, 1)
        added = [self.mlp(self.norm2(part), size) for part in flat.split(chunk)]
        return x + torch.cat(added).unflatten(0, x.shape[:2])

    def pool(self, normed: Tensor) -> Tensor:
        """Reduce every window to one token, a learned mean over its positions: (B, T, gh / 5, gw / 9, D)."""
        windows = rearrange(normed, "b t (r y) (c x) d -> b t r c d (y x)", y=WINDOW[0], x=WINDOW[1])
        return self.pool_layers[0](windows).squeeze(-1)
