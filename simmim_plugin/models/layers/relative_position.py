"""Relative position bias (BEiT, arXiv 2106.08254): tables, index and resizing.

A table for a grid of h x w patches has (2h-1)(2w-1) rows, one per offset between two patches, and three more for the
class token: cls -> patch, patch -> cls, cls -> cls. It has one column per head. Register tokens, which follow the class
token, have the rows of the class token: neither has a place in the grid, so a table says nothing else about them.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]  # height and width in patches

CLS_ROWS = 3
INTERPOLATIONS = ('geometric', 'plain')  # of tables, see `resize_table`
MOST_LISTED = 128  # patches a side of inputs of an ONNX file for any height and width
ALIGNMENT = 8  # elements: fused attention kernels on GPUs need rows of a bias to start at multiples of it


def table_rows(grid: Grid) -> int:
    """Number of rows of a table for a grid of h x w patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS


def relative_position_index(
    grid: Grid, device: torch.device | None = None, table_grid: Grid | None = None, prefix: int = 1
) -> Tensor:
    """Row of the table for every pair of tokens, class token first.

    Args:
        grid: Height h and width w in patches.
        device: Device of the index.
        table_grid: Grid of the table, at least as large as `grid`; None: `grid`. Offsets in patches are looked up as
            they are: nothing is interpolated.
        prefix: Number of tokens in front of the patches: the class token and the registers.

    Returns:
        (prefix + h*w, prefix + h*w) int64, [query, key]. It is shared between calls: do not write into it.
    """
    return _aligned_index(grid, device, table_grid, prefix)[:, : prefix + grid[0] * grid[1]]


def _aligned_index(grid: Grid, device: torch.device | None, table_grid: Grid | None, prefix: int) -> Tensor:
    """The index, padded with columns of zeros to a multiple of `ALIGNMENT`."""
    if _recorded():  # no cache: the few operations become part of the graph
        return _index(grid, table_grid or grid, device, prefix)
    return _cached_index(grid, device, table_grid or grid, prefix)


def _recorded() -> bool:
    """Whether operations are compiled or traced: a tensor from a cache would differ between two recordings."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@lru_cache(maxsize=8)
def _cached_index(grid: Grid, device: torch.device | None, table_grid: Grid, prefix: int) -> Tensor:
    with torch.inference_mode(False):  # a tensor cached in inference mode could not be used in training
        return _index(grid, table_grid, device, prefix)


def _index(grid: Grid, table_grid: Grid, device: torch.device | None, prefix: int) -> Tensor:
    h, w = grid
    H, W = table_grid
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing='ij')
    y, x = y.flatten(), x.flatten()
    rows = table_rows(table_grid)
    tokens = prefix + h * w
    index = torch.zeros(tokens, tokens + -tokens % ALIGNMENT, dtype=torch.long, device=device)
    index[prefix:, prefix:tokens] = (y[:, None] - y[None, :] + H - 1) * (2 * W - 1) + (x[:, None] - x[None, :] + W - 1)
    index[:prefix, :tokens] = rows - 3
    index[:, :prefix] = rows - 2
    index[:prefix, :prefix] = rows - 1
    return index


def resize_table(table: Tensor, old_grid: Grid, new_grid: Grid, interpolation: str = 'geometric') -> Tensor:
    """Interpolate a table to another grid, each head as an image of (2h-1) x (2w-1); the rows of the class token stay.

    Args:
        table: ((2h-1)(2w-1)+3, heads).
        old_grid: Grid (h, w) of the table.
        new_grid: Grid of the result.
        interpolation: 'geometric' keeps the biases of small offsets and stretches those of large ones: along each axis,
            the old offsets are placed at 0, 1, 1 + q, 1 + q + q^2 ..., with q such that the last is the largest new
            one, and joined by cubic splines (BEiT, the reference implementation, MMPretrain, timm). 'plain' stretches
            all alike: bicubic with align_corners=False, timm's `resize_rel_pos_bias_table_simple`.

    Returns:
        A table for `new_grid`; the same tensor if the grids are equal. Differentiable.
    """
    symbolic = any(isinstance(side, torch.SymInt) for side in new_grid)  # torch.export: a comparison would fix them
    if not symbolic and old_grid == new_grid:
        return table
    old_size = (2 * old_grid[0] - 1, 2 * old_grid[1] - 1)
    new_size = (2 * new_grid[0] - 1, 2 * new_grid[1] - 1)
    offsets, cls_rows = table[:-CLS_ROWS], table[-CLS_ROWS:]
    image = offsets.T.reshape(1, -1, *old_size)  # (1, heads, 2h-1, 2w-1)
    if interpolation == 'plain':
        image = F.interpolate(image.float(), size=new_size, mode='bicubic', align_corners=False)
    else:
        weights = _axis_weights if symbolic or _recorded() else _cached_axis_weights
        if symbolic and torch.onnx.is_in_onnx_export():  # ONNX solves no equations
            weights = _axis_weights_from_list
        rows, columns = (weights(old, new, table.device) for old, new in zip(old_grid, new_grid))
        image = rows @ image.double() @ columns.T  # in float64, which autocast leaves alone
    return torch.cat((image.flatten(2).squeeze(0).T.to(table.dtype), cls_rows))


@lru_cache(maxsize=32)
def _cached_axis_weights(old: int, new: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _axis_weights(old, new, torch.device('cpu')).to(device)


@lru_cache(maxsize=8)
def listed_axis_weights(old: int) -> Tensor:
    """`_axis_weights` for 1, 2 ... `MOST_LISTED` new patches below each other: those for n start at row (n - 1)^2."""
    return torch.cat([_cached_axis_weights(old, new, torch.device('cpu')) for new in range(1, MOST_LISTED + 1)])


def _axis_weights_from_list(old: int, new: int, device: torch.device) -> Tensor:
    return listed_axis_weights(old).to(device)[torch.arange(2 * new - 1, device=device) + (new - 1) ** 2]


def _axis_weights(old: int, new: int, device: torch.device) -> Tensor:
    """Geometric interpolation along one axis, from `old` to `new` patches, as a matrix (2 new - 1, 2 old - 1)."""
    powers = torch.arange(old - 1, dtype=torch.float64, device=device)
    low, high = (torch.full((), end, dtype=torch.float64, device=device) for end in (1.01, 1.5))
    for _ in range(19):  # bisection to 1e-6, as in BEiT: its q to the last bit, since 1e-6 of it moves far offsets 1e-4
        q = (low + high) / 2
        too_far = (q**powers).sum() > new - 1
        low, high = torch.where(too_far, low, q), torch.where(too_far, q, high)
    places = (q**powers).cumsum(0)  # of the old offsets 1, 2, ...
    places = torch.where(torch.full_like(q, new) == old, powers + 1, places)  # nothing to stretch
    places = torch.cat((-places.flip(0), places.new_zeros(1), places))
    targets = torch.arange(1 - new, new, dtype=torch.float64, device=device).clamp(places[0], places[-1])
    scale = places[-1].clamp(min=1)  # to -1 ... 1, where powers are of like size
    places, targets = places / scale, targets / scale
    # A cubic spline without knots at the second and the last but one place: a cubic polynomial, and |x - knot|^3.
    knots, degrees = places[2:-2], torch.arange(min(4, 2 * old - 1), device=device)

    def basis(x: Tensor) -> Tensor:
        return torch.cat((x[:, None] ** degrees, (x[:, None] - knots).abs() ** 3), dim=1)

    return torch.linalg.solve(basis(places), basis(targets), left=False)


def bias_from_table(
    table: Tensor, grid: Grid, table_grid: Grid | None = None, dtype: torch.dtype | None = None, prefix: int = 1
) -> Tensor:
    """Attention bias of a grid, from a table.

    Args:
        table: (rows, heads), for `grid` or a larger `table_grid`.
        grid: Height h and width w in patches.
        table_grid: Grid of the table; None: `grid`.
        dtype: Dtype of the result; None: the table's.
        prefix: See `relative_position_index`.

    Returns:
        (heads, prefix + h*w, prefix + h*w), [head, query, key]; in memory, rows start at multiples of `ALIGNMENT`.
    """
    bias = table[_aligned_index(grid, table.device, table_grid, prefix)]  # (query, aligned key, heads)
    return bias.permute(2, 0, 1).to(dtype or table.dtype).contiguous()[..., : prefix + grid[0] * grid[1]]


class RelativePositionBias(nn.Module):
    """Relative position bias with one learned table for all blocks.

    Args:
        grid: Height and width of the table's grid in patches.
        num_heads: Number of attention heads.
        interpolation: See `resize_table`.
        prefix: See `relative_position_index`.
    """

    def __init__(self, grid: Grid, num_heads: int, interpolation: str = 'geometric', prefix: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.interpolation = interpolation
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), num_heads))

    def forward(self, grid: Grid, window: Grid | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Bias of a grid of h x w patches, which may be part of a window; see `bias_from_table`."""
        offsets_of = window or grid
        table = resize_table(self.relative_position_bias_table, self.grid, offsets_of, self.interpolation)
        return bias_from_table(table, grid, offsets_of, dtype, self.prefix)


TABLE = 'relative_position_bias_table'
INDEX = 'relative_position_index'  # a buffer in other projects, computed from the grid
