"""Attention inside windows of a grid of patches, for large images (as ViTDet, arXiv 2203.16527)."""

from collections.abc import Callable

import torch
from torch import Tensor

from simmim_plugin.relative_position import Grid


def has_windows(grid: Grid, size: int) -> bool:
    """Whether windows of that side (0: none) divide a grid; one that covers it all does not."""
    return size > 0 and max(grid) > size


def window_parts(grid: Grid, size: int) -> list[Grid]:
    """Heights and widths of the windows that a grid is cut into: whole ones, and smaller ones at its ends."""
    return [(h, w) for _, _, h in _cuts(grid[0], size) for _, _, w in _cuts(grid[1], size)]


def in_windows(attention: Callable[[Tensor, Grid], Tensor], x: Tensor, grid: Grid, size: int) -> Tensor:
    """Attend inside windows of size x size patches, from the top left corner on.

    Where the grid is no multiple of `size`, the last window of a row or column is smaller. That gives what padding the
    grid to whole windows gives when no token sees the padding, without computing it. (ViTDet pads and lets the padding
    be seen.) The class token takes part in every window; its result is the mean over the windows.

    Args:
        attention: `attention(tokens, (h, w))` maps (n, 1 + h*w, D), class token first, to the same shape.
        x: (B, 1 + h*w, D), class token first.
        grid: Height and width in patches.
        size: Side of a window in patches.

    Returns:
        (B, 1 + h*w, D).
    """
    B, _, D = x.shape
    cls, patches = x[:, :1], x[:, 1:].unflatten(1, grid)  # (B, 1, D), (B, H, W, D)
    cls_results, rows = [], []
    for top, bottom, h in _cuts(grid[0], size):
        row = []
        for left, right, w in _cuts(grid[1], size):
            n, m = (bottom - top) // h, (right - left) // w  # windows below and beside each other
            region = patches[:, top:bottom, left:right].reshape(B, n, h, m, w, D)
            tokens = region.permute(0, 1, 3, 2, 4, 5).reshape(B * n * m, h * w, D)
            tokens = torch.cat((cls.expand(-1, n * m, -1).reshape(B * n * m, 1, D), tokens), dim=1)
            result = attention(tokens, (h, w))
            cls_results.append(result[:, 0].reshape(B, n * m, D))
            region = result[:, 1:].reshape(B, n, m, h, w, D).permute(0, 1, 3, 2, 4, 5)
            row.append(region.reshape(B, bottom - top, right - left, D))
        rows.append(torch.cat(row, dim=2))
    cls = torch.cat(cls_results, dim=1).mean(dim=1, keepdim=True)
    return torch.cat((cls, torch.cat(rows, dim=1).flatten(1, 2)), dim=1)


def _cuts(length: int, size: int) -> list[tuple[int, int, int]]:
    """Start, end and side of the windows along an axis: the whole ones, then a smaller last one."""
    whole = length - length % size
    return [cut for cut in ((0, whole, size), (whole, length, length - whole)) if cut[0] < cut[1]]
