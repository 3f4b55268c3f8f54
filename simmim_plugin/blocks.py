"""The transformer block of SimMIMViT."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from simmim_plugin.relative_position import Grid, GridCache, bias_from_table, resize_table, table_rows
from simmim_plugin.windows import has_windows, in_windows

Biases = Mapping[Grid, Tensor]  # of a shared table, by the grid of the tokens: (heads, N, N) each

LAYER_NORM_EPS = 1e-6


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

    def forward(self, x: Tensor, grid: Grid, shared: Biases | None, window: Grid | None = None) -> Tensor:
        """(B, N, D) tokens of a grid, which may be part of a window, with biases of a shared table -> (B, N, D)."""
        B, N, D = x.shape
        q, k, v, bias = self._project(x, grid, shared, window)
        if bias is not None and q.device.type == 'cpu' and torch.is_grad_enabled():
            # A bias that learns keeps PyTorch from its fused kernel on processors; written out, it is faster there.
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1)
            x = weights.to(v.dtype) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))

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
        q, k, _, bias = self._project(x, grid, shared, None)
        scores = torch.einsum('bhd,bhnd->bhn', q[:, :, query], k) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias[:, query]).softmax(dim=-1)

    def _project(
        self, x: Tensor, grid: Grid, shared: Biases | None, window: Grid | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values, (B, heads, N, D / heads) each, and the bias, (heads, N, N) or None."""
        B, N, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = None if shared is None else shared[grid]
        if self.relative_position_bias_table is not None and self.table_grid is not None:
            whole = window or grid
            table = self.cache(self.relative_position_bias_table, self.table_grid, whole)
            bias = bias_from_table(table, grid, whole)
        return q, k, v, None if bias is None else bias.to(q.dtype)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale and drop path on both branches.

    Args:
        embed_dims: Width.
        num_heads: Number of heads.
        feedforward_channels: Hidden width of the MLP.
        drop_path: Probability to drop a branch, per sample.
        layer_scale_init_value: Initial LayerScale; 0 leaves LayerScale out.
        table_grid: See `Attention`.
        window_size: Side in patches of the windows that attention stays inside; 0: attention over the whole grid. See
            `in_windows`. A grid that one window covers is attended to as a whole.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        drop_path: float,
        layer_scale_init_value: float,
        table_grid: Grid | None,
        window_size: int = 0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS)
        self.attn = Attention(embed_dims, num_heads, table_grid)
        self.norm2 = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(embed_dims, feedforward_channels)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init_value > 0:
            self.gamma_1 = nn.Parameter(torch.full((embed_dims,), layer_scale_init_value))
            self.gamma_2 = nn.Parameter(torch.full((embed_dims,), layer_scale_init_value))

    def forward(self, x: Tensor, grid: Grid, shared: Biases | None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        branch = self._attend(self.norm1(x), grid, shared)
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)

    def _attend(self, x: Tensor, grid: Grid, shared: Biases | None) -> Tensor:
        size = self.window_size
        if not has_windows(grid, size):
            return self.attn(x, grid, shared)
        return in_windows(lambda tokens, part: self.attn(tokens, part, shared, (size, size)), x, grid, size)
