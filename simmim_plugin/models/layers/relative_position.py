"""Relative position bias (BEiT, arXiv 2106.08254): tables, index and resizing.

A table for a grid of h x w patches has (2h-1)(2w-1) rows, one per offset between two patches, and three more for the
class token: cls -> patch, patch -> cls, cls -> cls. It has one column per head.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]  # height and width in patches

CLS_ROWS = 3
ALIGNMENT = 8  # elements: fused attention kernels on GPUs need rows of a bias to start at multiples of it


def table_rows(grid: Grid) -> int:
    """Number of rows of a table for a grid of h x w patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS


def relative_position_index(grid: Grid, device: torch.device | None = None, table_grid: Grid | None = None) -> Tensor:
    """Row of the table for every pair of tokens, class token first.

    Args:
        grid: Height h and width w in patches.
        device: Device of the index.
        table_grid: Grid of the table, at least as large as `grid`; None: `grid`. Offsets in patches are looked up as
            they are: nothing is interpolated.

    Returns:
        (1 + h*w, 1 + h*w) int64, [query, key]. It is shared between calls: do not write into it.
    """
    return _aligned_index(grid, device, table_grid)[:, : 1 + grid[0] * grid[1]]


def _aligned_index(grid: Grid, device: torch.device | None, table_grid: Grid | None) -> Tensor:
    """The index, padded with columns of zeros to a multiple of `ALIGNMENT`."""
    if torch.compiler.is_compiling():  # no cache: the few operations become part of the graph
        return _index(grid, table_grid or grid, device)
    return _cached_index(grid, device, table_grid or grid)


@lru_cache(maxsize=8)
def _cached_index(grid: Grid, device: torch.device | None, table_grid: Grid) -> Tensor:
    with torch.inference_mode(False):  # a tensor cached in inference mode could not be used in training
        return _index(grid, table_grid, device)


def _index(grid: Grid, table_grid: Grid, device: torch.device | None) -> Tensor:
    h, w = grid
    H, W = table_grid
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing='ij')
    y, x = y.flatten(), x.flatten()
    rows = table_rows(table_grid)
    tokens = 1 + h * w
    index = torch.zeros(tokens, tokens + -tokens % ALIGNMENT, dtype=torch.long, device=device)
    index[1:, 1:tokens] = (y[:, None] - y[None, :] + H - 1) * (2 * W - 1) + (x[:, None] - x[None, :] + W - 1)
    index[0, :tokens] = rows - 3
    index[:, 0] = rows - 2
    index[0, 0] = rows - 1
    return index


def resize_table(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """Interpolate a table to another grid, each head as an image of (2h-1) x (2w-1); the rows of the class token stay.

    Plain bicubic interpolation (align_corners=False), as timm's `resize_rel_pos_bias_table_simple`; either
    grid may be non-square. The reference implementation interpolates on geometrically spaced coordinates.

    Args:
        table: ((2h-1)(2w-1)+3, heads).
        old_grid: Grid (h, w) of the table.
        new_grid: Grid of the result.

    Returns:
        A table for `new_grid`; the same tensor if the grids are equal. Differentiable.
    """
    if old_grid == new_grid:
        return table
    old_size = (2 * old_grid[0] - 1, 2 * old_grid[1] - 1)
    new_size = (2 * new_grid[0] - 1, 2 * new_grid[1] - 1)
    offsets, cls_rows = table[:-CLS_ROWS], table[-CLS_ROWS:]
    image = offsets.T.reshape(1, -1, *old_size).float()  # (1, heads, 2h-1, 2w-1)
    image = F.interpolate(image, size=new_size, mode='bicubic', align_corners=False)
    return torch.cat((image.flatten(2).squeeze(0).T.to(table.dtype), cls_rows))


def bias_from_table(
    table: Tensor, grid: Grid, table_grid: Grid | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Attention bias of a grid, from a table.

    Args:
        table: (rows, heads), for `grid` or a larger `table_grid`.
        grid: Height h and width w in patches.
        table_grid: Grid of the table; None: `grid`.
        dtype: Dtype of the result; None: the table's.

    Returns:
        (heads, 1 + h*w, 1 + h*w), [head, query, key]; in memory, rows start at multiples of `ALIGNMENT`.
    """
    bias = table[_aligned_index(grid, table.device, table_grid)]  # (query, aligned key, heads)
    return bias.permute(2, 0, 1).to(dtype or table.dtype).contiguous()[..., : 1 + grid[0] * grid[1]]


class RelativePositionBias(nn.Module):
    """Relative position bias with one learned table for all blocks.

    Args:
        grid: Height and width of the table's grid in patches.
        num_heads: Number of attention heads.
    """

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), num_heads))

    def forward(self, grid: Grid, window: Grid | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Bias of a grid of h x w patches, which may be part of a window: (heads, 1 + h*w, 1 + h*w)."""
        offsets_of = window or grid
        table = resize_table(self.relative_position_bias_table, self.grid, offsets_of)
        return bias_from_table(table, grid, offsets_of, dtype)


TABLE = 'relative_position_bias_table'
INDEX = 'relative_position_index'  # a buffer in other projects, computed from the grid
