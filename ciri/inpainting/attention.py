"""The token attention that FuseFormer and DSTT share, key for key.

Dimensions: B sequences, N tokens, D token width.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEADS = 4


class TokenAttention(nn.Module):
    """Multi-head attention of every query token to all tokens, fused, so that no score matrix is held."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.query_embedding = nn.Linear(width, width)
        self.key_embedding = nn.Linear(width, width)
        self.value_embedding = nn.Linear(width, width)
        self.output_linear = nn.Linear(width, width)

    def forward(self, tokens: Tensor, queries: int | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: (B, N, D).
            queries: only the first so many tokens ask; the others are asked. None: all ask.

        Returns:
            (B, queries, D).
        """
        query, key, value = (
            rearrange(embed(x), "b n (heads d) -> b heads n d", heads=HEADS)
            for embed, x in (
                (self.query_embedding, tokens[:, :queries]),
                (self.key_embedding, tokens),
                (self.value_embedding, tokens),
            )
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output_linear(rearrange(attended, "b heads n d -> b n (heads d)"))
