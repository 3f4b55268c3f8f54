"""The transformer block of SimMIMViT."""

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from simmim_plugin.attention import Attention, Biases
from simmim_plugin.relative_position import Grid
from simmim_plugin.tokens import take
from simmim_plugin.windows import has_windows, in_windows

LAYER_NORM_EPS = 1e-6


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

    def forward(self, x: Tensor, grid: Grid, shared: Biases | None, tokens: Tensor | None = None) -> Tensor:
        """All tokens, or some of them; what the others would become is then not computed.

        Args:
            x: (B, N, D), class token first.
            grid: Height and width in patches.
            shared: Biases of a shared table, or None.
            tokens: (B, K) indices into N; None: all.

        Returns:
            (B, N, D), or (B, K, D).
        """
        branch = self._attend(self.norm1(x), grid, shared, tokens)
        if tokens is not None:
            x = take(x, tokens)
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)

    def _attend(self, x: Tensor, grid: Grid, shared: Biases | None, tokens: Tensor | None) -> Tensor:
        size = self.window_size
        if not has_windows(grid, size):
            return self.attn(x, grid, shared, tokens=tokens)
        result = in_windows(lambda part_tokens, part: self.attn(part_tokens, part, shared, (size, size)), x, grid, size)
        return result if tokens is None else take(result, tokens)
