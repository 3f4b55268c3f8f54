"""Attention with a relative position bias, by whichever kernel is fastest."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_plugin.relative_position import ALIGNMENT, Grid, GridCache, bias_from_table, resize_table, table_rows
from simmim_plugin.tokens import take

Biases = Mapping[Grid, Tensor]  # of a shared table, by the grid of the tokens: (heads, N, N) each


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention; the one place where its kernel is chosen.

    A bias that learns keeps PyTorch from its fused kernel on processors; attention is written out there, which measured
    faster (`tools/benchmark.py attention`). Elsewhere `scaled_dot_product_attention` chooses.

    Args:
        q: (B, heads, K, d), queries.
        k: (B, heads, N, d), keys.
        v: (B, heads, N, d), values.
        bias: Added to the scaled products, (heads, K, N) or (B, heads, K, N), of the dtype of q; None: none.

    Returns:
        (B, heads, K, d).
    """
    if q.device.type == 'cpu' and bias is not None and bias.requires_grad:
        with torch.autocast('cpu', enabled=False):  # which would have the softmax give float32
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Multi-head self-attention with learned q and v biases (k has none) and a relative position bias.

    Args:
        embed_dims: Width.
        num_heads: Number of heads.
        table_grid: Grid (h, w) of this block's own bias table; None: no table of its own.
    """

    def __init__(self, embed_dims: int, num_heads: int, table_grid: Grid | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.table_grid = table_grid
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.relative_position_bias_table = None
        if table_grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(table_grid), num_heads))
            self.cache = GridCache(resize_table)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(
        self, x: Tensor, grid: Grid, shared: Biases | None, window: Grid | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """Attention between all tokens, or of some of them to all.

        Args:
            x: (B, N, D), class token first.
            grid: Height and width in patches, N = 1 + h*w.
            shared: Biases of a shared table, or None.
            window: The window that the grid is a part of.
            tokens: (B, K) indices into N of the tokens that attend; None: all.

        Returns:
            (B, N, D), or (B, K, D).
        """
        if tokens is None:
            q, k, v = self._heads(F.linear(x, self.qkv.weight, self._qkv_bias()), 3)
        else:
            D = x.shape[-1]
            (q,) = self._heads(F.linear(take(x, tokens), self.qkv.weight[:D], self.q_bias), 1)
            k, v = self._heads(F.linear(x, self.qkv.weight[D:], self._qkv_bias()[D:]), 2)
        bias = self._bias(grid, shared, window, q.dtype)
        if bias is not None and tokens is not None:
            bias = _rows_of(bias, tokens)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))

    def attention_of(self, x: Tensor, grid: Grid, shared: Biases | None, query: int) -> Tensor:
        """Attention weights of one token, which `forward` uses without showing them.

        Args:
            x: (B, N, D) tokens of the grid, class token first.
            grid: Height and width in patches.
            shared: Biases of a shared table, or None.
            query: Index of the token that attends; 0 is the class token.

        Returns:
            (B, heads, N), which sums to 1 over the keys.
        """
        q, k, _ = self._heads(F.linear(x, self.qkv.weight, self._qkv_bias()), 3)
        bias = self._bias(grid, shared, None, q.dtype)
        scores = torch.einsum('bhd,bhnd->bhn', q[:, :, query], k) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias[:, query]).softmax(dim=-1)

    def _qkv_bias(self) -> Tensor:
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts * D) -> that many of (B, heads, N, D / heads)."""
        return projected.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _bias(self, grid: Grid, shared: Biases | None, window: Grid | None, dtype: torch.dtype) -> Tensor | None:
        """(heads, N, N), of this block's table or the shared one, or None."""
        if self.relative_position_bias_table is None or self.table_grid is None:
            return None if shared is None else shared[grid].to(dtype)
        whole = window or grid
        table = self.cache(self.relative_position_bias_table, self.table_grid, whole)
        return bias_from_table(table, grid, whole, dtype)


def _rows_of(bias: Tensor, tokens: Tensor) -> Tensor:
    """(heads, N, N), (B, K) -> (B, heads, K, N), the rows of the tokens that attend."""
    heads, _, N = bias.shape
    padded = F.pad(bias, (0, -N % ALIGNMENT)).transpose(0, 1).flatten(1)  # (N, heads * aligned N)
    return F.embedding(tokens, padded).unflatten(-1, (heads, -1)).transpose(1, 2)[..., :N]
