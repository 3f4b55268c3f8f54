"""Layers of a Vision Transformer: patch embedding, block, attention, attention windows, initial weights."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from torch import Tensor, nn

from simmim_plugin.models.layers.relative_position import (
    Grid,
    RelativePositionBias,
    bias_from_table,
    resize_table,
    table_rows,
)

Biases = Mapping[Grid | None, Tensor]  # of a shared table: grid of a window, None for all tokens -> (heads, N, N)


class LinearPatchEmbed(PatchEmbed):
    """timm's `PatchEmbed`, with a matrix product over the flattened patches instead of a convolution under autocast.

    Parameters (`proj.weight` (D, C, p, p), `proj.bias`) and, up to rounding, outputs are the same. In bfloat16 the
    product takes a third to a half of the time (docs/performance.md); in float32 little is gained, and the convolution
    rounds like the reference.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h*w, D); with `dynamic_img_pad`, sides are zero-padded to multiples of the patch."""
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        height, width = self.patch_size
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))
        B, C, H, W = x.shape
        cut = x.reshape(B, C, H // height, height, W // width, width).permute(0, 2, 4, 1, 3, 5)
        patches = cut.reshape(B, -1, C * height * width)  # (B, h*w, C*p*p), in the kernel's order
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale and drop path on both branches.

    Args:
        embed_dims: Width.
        num_heads: Number of heads.
        feedforward_channels: Hidden width of the MLP.
        drop_path: Probability of dropping a branch, per sample.
        layer_scale_init_value: Initial LayerScale; 0 leaves LayerScale out.
        table_grid: See `Attention`.
        window_size: Side of the attention windows in patches, see `in_windows`; 0: global attention. A grid that one
            window covers has global attention as well.
        interpolation: See `resize_table`.
        prefix: Number of tokens in front of the patches.
        norm_eps: Epsilon of the LayerNorms.
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
        interpolation: str = 'geometric',
        prefix: int = 1,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = Attention(embed_dims, num_heads, table_grid, interpolation, prefix)
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = Mlp(embed_dims, feedforward_channels)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init_value > 0:
            self.gamma_1 = nn.Parameter(torch.full((embed_dims,), layer_scale_init_value))
            self.gamma_2 = nn.Parameter(torch.full((embed_dims,), layer_scale_init_value))

    def forward(self, x: Tensor, grid: Grid, shared: Biases | None) -> Tensor:
        """Attention, then the MLP.

        Args:
            x: (B, N, D), class token first, then registers, then patches.
            grid: Height and width in patches.
            shared: Biases of a shared table, or None.

        Returns:
            (B, N, D).
        """
        branch = self._attend(self.norm1(x), grid, shared)
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)

    def attention_of(self, x: Tensor, grid: Grid, shared: Biases | None, query: int) -> Tensor:
        """Attention weights of one token, without windows; see `Attention.attention_of`."""
        return self.attn.attention_of(self.norm1(x), grid, shared, query)

    def _attend(self, x: Tensor, grid: Grid, shared: Biases | None) -> Tensor:
        size = self.window_size
        if not has_windows(grid, size):
            return self.attn(x, grid, shared)
        attention = lambda tokens, part: self.attn(tokens, part, shared, (size, size))  # noqa: E731
        return in_windows(attention, x, grid, size, self.attn.prefix)


class Attention(nn.Module):
    """Multi-head self-attention with learned q and v biases (k has none) and a relative position bias.

    Args:
        embed_dims: Width.
        num_heads: Number of heads.
        table_grid: Grid (h, w) of this block's own bias table; None: no such table.
        interpolation: See `resize_table`.
        prefix: Number of tokens in front of the patches: the class token and the registers.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        table_grid: Grid | None,
        interpolation: str = 'geometric',
        prefix: int = 1,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.num_heads = num_heads
        self.table_grid = table_grid
        self.interpolation = interpolation
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.relative_position_bias_table = None
        if table_grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(table_grid), num_heads))
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, grid: Grid, shared: Biases | None, window: Grid | None = None) -> Tensor:
        """Attention between all tokens.

        Args:
            x: (B, N, D), patches last.
            grid: Height and width in patches, N = prefix + h*w.
            shared: Biases of a shared table, or None.
            window: Height and width in patches of the window, if the grid is part of one.

        Returns:
            (B, N, D).
        """
        q, k, v = self._qkv(x)
        bias = self._bias(grid, shared, window, q.dtype)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))

    def attention_of(self, x: Tensor, grid: Grid, shared: Biases | None, query: int) -> Tensor:
        """Attention weights of one token, which `forward` does not return.

        Args:
            x: (B, N, D) tokens of the grid, patches last.
            grid: Height and width in patches.
            shared: Biases of a shared table, or None.
            query: Index of the token; 0 is the class token.

        Returns:
            (B, heads, N), summing to 1 over the keys.
        """
        q, k, _ = self._qkv(x)
        bias = self._bias(grid, shared, None, q.dtype)
        scores = torch.einsum('bhd,bhnd->bhn', q[:, :, query], k) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias[:, query]).softmax(dim=-1)

    def _qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, D) -> queries, keys and values, (B, heads, N, D / heads) each."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        plain = isinstance(self.qkv.weight, Tensor)  # it is a method after PyTorch's dynamic quantisation
        qkv = F.linear(x, self.qkv.weight, bias) if plain else self.qkv(x) + bias  # (B, N, 3 * D)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _bias(self, grid: Grid, shared: Biases | None, window: Grid | None, dtype: torch.dtype) -> Tensor | None:
        """Bias (heads, N, N) from this block's table or the shared one; None without either."""
        if self.relative_position_bias_table is None or self.table_grid is None:
            return None if shared is None else shared[window and grid].to(dtype)
        offsets_of = window or grid
        table = resize_table(self.relative_position_bias_table, self.table_grid, offsets_of, self.interpolation)
        return bias_from_table(table, grid, offsets_of, dtype, self.prefix)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention; the only place where its kernel is chosen.

    On CPUs, a bias with a gradient rules out PyTorch's fused kernel; attention written out in matrix products is faster
    there (`tools/benchmark.py attention`). Elsewhere `scaled_dot_product_attention` chooses.

    Args:
        q: (B, heads, N, d), queries.
        k: (B, heads, N, d), keys.
        v: (B, heads, N, d), values.
        bias: (heads, N, N) in the dtype of q, added to the scaled products; None: no bias.

    Returns:
        (B, heads, N, d).
    """
    if q.device.type == 'cpu' and bias is not None and bias.requires_grad:
        with torch.autocast('cpu', enabled=False):  # autocast would compute the softmax in float32
            return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def has_windows(grid: Grid, size: int) -> bool:
    """Whether windows of this side (0: no windows) split a grid; a window that covers all of it does not."""
    return size > 0 and max(grid) > size


def window_parts(grid: Grid, size: int) -> list[Grid]:
    """Heights and widths of the windows of a grid: full ones, and smaller ones at its bottom and right ends."""
    return [(h, w) for _, _, h in _cuts(grid[0], size) for _, _, w in _cuts(grid[1], size)]


def shared_biases(
    table: RelativePositionBias | None, window_sizes: Collection[int], grid: Grid, dtype: torch.dtype
) -> Biases | None:
    """Biases of a shared table for every grid that some block attends in, computed once; None without a table."""
    if table is None:
        return None
    biases: dict[Grid | None, Tensor] = {}
    for size in set(window_sizes):
        if has_windows(grid, size):
            biases |= {part: table(part, (size, size), dtype) for part in window_parts(grid, size)}
        else:
            biases[None] = table(grid, dtype=dtype)
    return biases


def in_windows(
    attention: Callable[[Tensor, Grid], Tensor], x: Tensor, grid: Grid, size: int, prefix: int = 1
) -> Tensor:
    """Attend inside windows of size x size patches, starting at the top left corner.

    If the grid is not a multiple of `size`, the last window of a row or column is smaller. The result equals padding
    the grid to full windows with the padding masked out, without the cost. (ViTDet pads without masking.) The class
    token and the registers are part of every window; their results are the means over the windows.

    Args:
        attention: `attention(tokens, (h, w))` maps (n, prefix + h*w, D), patches last, to the same shape.
        x: (B, prefix + h*w, D), patches last.
        grid: Height and width in patches.
        size: Side of a window in patches.
        prefix: Number of tokens in front of the patches.

    Returns:
        (B, prefix + h*w, D).
    """
    B, _, D = x.shape
    first, patches = x[:, None, :prefix], x[:, prefix:].unflatten(1, grid)  # (B, 1, prefix, D), (B, H, W, D)
    first_results, rows = [], []
    for top, bottom, h in _cuts(grid[0], size):
        row = []
        for left, right, w in _cuts(grid[1], size):
            n, m = (bottom - top) // h, (right - left) // w  # rows and columns of windows
            region = patches[:, top:bottom, left:right].reshape(B, n, h, m, w, D)
            tokens = region.permute(0, 1, 3, 2, 4, 5).reshape(B * n * m, h * w, D)
            tokens = torch.cat((first.expand(-1, n * m, -1, -1).reshape(B * n * m, prefix, D), tokens), dim=1)
            result = attention(tokens, (h, w))
            first_results.append(result[:, :prefix].reshape(B, n * m, prefix, D))
            region = result[:, prefix:].reshape(B, n, m, h, w, D).permute(0, 1, 3, 2, 4, 5)
            row.append(region.reshape(B, bottom - top, right - left, D))
        rows.append(torch.cat(row, dim=2))
    first = torch.cat(first_results, dim=1).mean(dim=1)
    return torch.cat((first, torch.cat(rows, dim=1).flatten(1, 2)), dim=1)


def _cuts(length: int, size: int) -> list[tuple[int, int, int]]:
    """Start, end and side of the windows along an axis: the full ones, then a smaller last one."""
    full = length - length % size
    return [cut for cut in ((0, full, size), (full, length, length - full)) if cut[0] < cut[1]]


def init_parameters(vit: Any, cut: float) -> None:
    """Draw weights from a normal of std 0.02 truncated at +-`cut`; divide output layers of block i by sqrt(2 (i + 1)).

    Bias tables and q and v biases keep their 0, norms their 1 and 0.
    """
    tokens = (vit.cls_token, vit.reg_token, vit.mask_token, vit.pos_embed)
    drawn: list[Tensor] = [token for token in tokens if token is not None]
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            drawn.append(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in drawn:
        nn.init.trunc_normal_(parameter, std=0.02, a=-cut, b=cut)
    with torch.no_grad():
        for i in range(vit.num_layers):
            for name in (f'blocks.{i}.attn.proj', f'blocks.{i}.mlp.fc2'):
                vit.get_parameter(f'{name}.weight').div_((2 * (i + 1)) ** 0.5)
