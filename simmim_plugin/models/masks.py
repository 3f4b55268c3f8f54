"""Masks over the patches: their polarity, their names, and how they are drawn.

A mask is (h, w), in a batch (B, h, w), over the patches; 1 = masked, from the generator to the loss and the pictures.
It is drawn in units: squares of `unit` x `unit` patches that are masked or visible as one.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

# A sample's keys: what the model sees, and where two masks are drawn at once the two, of which `mask` is the union.
MASKS = ('mask', 'mask_local', 'mask_global')

Mask = np.ndarray[tuple[int, int], np.dtype[np.uint8]]  # (h, w), 1 = masked


@lru_cache(maxsize=1024)
def masked_count(ratio: float, units: int) -> int:
    """ceil(ratio * units), free of floating-point residue: 0.07 of 100 units is 7, not 8."""
    return math.ceil(round(ratio * units, 9))


@lru_cache(maxsize=1024)
def unit_grid(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """Rows and columns of units that cover a grid of patches; those at the lower and right edges may stick out."""
    return math.ceil(grid[0] / unit), math.ceil(grid[1] / unit)


@lru_cache(maxsize=4)
def _unit_of_patches(grid: tuple[int, int], unit: int) -> np.ndarray:
    """(h, w), the number of the unit that each patch lies in; units are numbered row by row."""
    columns = unit_grid(grid, unit)[1]
    down, across = (np.arange(side, dtype=np.int32) // unit for side in grid)
    numbers = down[:, None] * columns + across
    numbers.setflags(write=False)  # every caller gets the same one
    return numbers


def random_mask(
    grid: tuple[int, int], unit: int, ratio: float, rng: Any = np.random, region_ratio: float = 1.0
) -> Mask:
    """Mask units chosen uniformly without replacement.

    Args:
        grid: Height and width of the mask in patches.
        unit: Side of a unit in patches. Units that stick out at the lower and right edges are cut.
        ratio: Share of the region's units to mask, in [0, 1]; exactly ceil(ratio * units) of them.
        rng: Source of `permutation`; NumPy's global one is seeded in every worker by MMEngine.
        region_ratio: Share of the units, chosen at random, that form the region; ceil(region_ratio * units) of them.

    Returns:
        (h, w), 1 = masked.
    """
    rows, columns = unit_grid(grid, unit)
    units = np.zeros(rows * columns, dtype=np.uint8)
    region = rng.permutation(units.size)[: masked_count(region_ratio, units.size)]
    units[region[: masked_count(ratio, region.size)]] = 1
    return units[_unit_of_patches(grid, unit)]


def adapted_ratio(ratio: float, tokens: int, reference_tokens: int, alpha: float) -> float:
    """Ratio for an image of another size: keep' = keep * (reference_tokens / tokens)^alpha, keep = 1 - ratio.

    Clipped to [0, 1]. With alpha 0 the ratio is constant, with alpha 1 the number of visible tokens is.
    """
    return 1 - min(1.0, (1 - ratio) * (reference_tokens / tokens) ** alpha)


def pixel_mask(mask: Tensor, patch_size: int) -> Tensor:
    """Patches to pixels: (B, h, w) -> (B, 1, h*p, w*p), same dtype."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2).unsqueeze(1)
