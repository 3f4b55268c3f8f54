"""Masks over the patches: their polarity, their names, and how they are drawn.

A mask is (h, w), in a batch (B, h, w), over the patches; 1 = masked, from the generator to the loss and the pictures.
It is drawn in units: squares of `unit` x `unit` patches that are masked or visible as one. The patches are those that
the backbone embeds; its features may be coarser (Swin: patches of 4 px, features of stride 32).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Keys of a sample: the mask that the model sees; of two simultaneous masks, both, whose union is `mask`.
MASKS = ('mask', 'mask_local', 'mask_global')

Mask = np.ndarray[tuple[int, int], np.dtype[np.uint8]]  # (h, w), 1 = masked


@lru_cache(maxsize=1024)
def masked_count(ratio: float, units: int) -> int:
    """ceil(ratio * units), without floating-point error: 0.07 of 100 units is 7, not 8."""
    return math.ceil(round(ratio * units, 9))


@lru_cache(maxsize=1024)
def unit_grid(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """Rows and columns of units that cover a grid of patches; the last ones may extend beyond its edges."""
    return math.ceil(grid[0] / unit), math.ceil(grid[1] / unit)


@lru_cache(maxsize=4)
def _unit_of_patches(grid: tuple[int, int], unit: int) -> np.ndarray:
    """(h, w): index of the unit that each patch belongs to, row by row."""
    columns = unit_grid(grid, unit)[1]
    down, across = (np.arange(side, dtype=np.int32) // unit for side in grid)
    numbers = down[:, None] * columns + across
    numbers.setflags(write=False)  # cached: all callers share it
    return numbers


def random_mask(
    grid: tuple[int, int], unit: int, ratio: float, rng: Any = np.random, region_ratio: float = 1.0
) -> Mask:
    """Mask units chosen uniformly without replacement.

    Args:
        grid: Height and width of the mask in patches.
        unit: Side of a unit in patches. Units at the bottom and right edges are cropped to the grid.
        ratio: Share of the region's units to mask, in [0, 1]; exactly ceil(ratio * units) of them.
        rng: Has `permutation`; MMEngine seeds NumPy's global generator in every worker.
        region_ratio: Share of all units that form the region: ceil(region_ratio * units) random ones.

    Returns:
        (h, w), 1 = masked.
    """
    rows, columns = unit_grid(grid, unit)
    units = np.zeros(rows * columns, dtype=np.uint8)
    region = rng.permutation(units.size)[: masked_count(region_ratio, units.size)]
    units[region[: masked_count(ratio, region.size)]] = 1
    return units[_unit_of_patches(grid, unit)]


def adapted_ratio(ratio: float, tokens: int, reference_tokens: int, alpha: float) -> float:
    """Ratio for another image size: keep' = keep * (reference_tokens / tokens)^alpha, keep = 1 - ratio.

    Clipped to [0, 1]. alpha 0 keeps the ratio, alpha 1 the number of visible tokens.
    """
    return 1 - min(1.0, (1 - ratio) * (reference_tokens / tokens) ** alpha)


def mask_side(grid: Sequence[int], size: Sequence[int]) -> int:
    """Side in pixels of the squares that the values of a mask stand for.

    Args:
        grid: Height and width of the mask.
        size: Height and width of the images in pixels.

    Raises:
        ValueError: The mask does not divide the images into squares.
    """
    side = size[0] // grid[0] if grid[0] else 0
    if side < 1 or (grid[0] * side, grid[1] * side) != (size[0], size[1]):
        raise ValueError(
            f'a mask of {grid[0]} x {grid[1]} does not divide images of {size[0]} x {size[1]} px into squares; set '
            'model_patch_size in SimMIMMaskGenerator (in pixels), or input_size in BEiTMaskGenerator (in patches)'
        )
    return side


def pixel_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Mask -> mask over the pixels of images of a size: (B, h, w) -> (B, 1, H, W), same dtype; see `mask_side`."""
    side = mask_side(mask.shape[1:], size)
    return mask.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)


def cell_mask(pixels: Tensor, grid: Sequence[int]) -> Tensor:
    """Masked share of each cell of a map: (B, 1, H, W) over the pixels -> (B, 1, *grid); the same for cells of a pixel.

    Args:
        pixels: See `pixel_mask`.
        grid: Height and width of the map, whose cells are squares of pixels.
    """
    side = pixels.shape[2] // grid[0]
    return pixels if side == 1 else F.avg_pool2d(pixels.float(), side)


def masks_of(samples: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Masks of several samples, dicts or MMPretrain's `DataSample`: (B, h, w) uint8 by name, as many as they have."""
    found = [{name: torch.as_tensor(sample.get(name)) for name in MASKS if name in sample} for sample in samples]
    return {name: torch.stack([masks[name] for masks in found]).to(torch.uint8) for name in (found or [{}])[0]}
