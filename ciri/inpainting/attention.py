"""Softmax attention, and the token attention that FuseFormer and DSTT share, key for key.

Dimensions: B sequences, M heads, N tokens, D token width, d width of a head (n asking, k answering tokens).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEADS = 4

#: Scores of so many bytes are made at once: they stay in the caches.
CHUNK_BYTES = 4 << 20


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, without a score matrix of all tokens.

    PyTorch's fused kernel multiplies bfloat16 on processors natively with AMX alone; on others it is no faster than in
    float32, and three plain steps are (``benchmarks/inpainting.py``). Their scores are rounded to bfloat16, so what all
    keys have in common, which no weight depends on, is taken off first.

    Args:
        query: (B, M, n, d).
        key, value: (B, M, k, d).

    Returns:
        (B, M, n, d).
    """
    if _fused(query) or (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))):
        return F.scaled_dot_product_attention(query, key, value)
    key = key - key.mean(2, keepdim=True)
    query = query * query.shape[-1] ** -0.5
    b, heads, n, d = query.shape
    answers = query.new_empty(b, n, heads, d)
    rows = max(1, min(n, CHUNK_BYTES // (key.shape[2] * key.element_size())))
    scores, weights = query.new_empty(2, rows, key.shape[2])
    for i in range(b):
        for head in range(heads):
            for first in range(0, n, rows):
                asking = query[i, head, first : first + rows]
                s, w = scores[: len(asking)], weights[: len(asking)]
                torch.mm(asking, key[i, head].T, out=s)
                torch.softmax(s, -1, out=w)
                torch.mm(w, value[i, head], out=answers[i, first : first + rows, head])
    return answers.transpose(1, 2)


def _fused(x: Tensor) -> bool:
    """Whether PyTorch's fused attention is the fastest for what is like x, as far as this build of it can tell."""
    # a compiler would unroll the loop over the pieces
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is None or bool(capabilities().get("amx_bf16"))


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
        attended = attention(query, key, value)
        return self.output_linear(rearrange(attended, "b heads n d -> b n (heads d)"))
