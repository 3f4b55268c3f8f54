"""Random masks over square units of the image, on the grid of the model's patches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simmim_plugin.registry import TRANSFORMS


def masked_count(ratio: float, units: int) -> int:
    """ceil(ratio * units), free of floating-point residue: 0.07 of 100 units is 7, not 8."""
    return math.ceil(round(ratio * units, 9))


def random_mask(
    grid: tuple[int, int], unit: int, ratio: float, rng: Any = np.random
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Mask units chosen uniformly without replacement.

    Args:
        grid: Height and width of the mask in patches.
        unit: Side of a unit in patches. Units that stick out at the lower and right edges are cut.
        ratio: Share of the units to mask, in [0, 1]; exactly ceil(ratio * units) of them.
        rng: Source of `permutation`; NumPy's global one is seeded in every worker by MMEngine.

    Returns:
        (h, w), 1 = masked.
    """
    rows, columns = (math.ceil(side / unit) for side in grid)
    units = np.zeros(rows * columns, dtype=np.uint8)
    units[rng.permutation(units.size)[: masked_count(ratio, units.size)]] = 1
    mask = units.reshape(rows, columns).repeat(unit, axis=0).repeat(unit, axis=1)
    return np.ascontiguousarray(mask[: grid[0], : grid[1]])


@TRANSFORMS.register_module()
class SimMIMMaskGenerator:
    """Add a random mask to a sample: the published SimMIM masking (arXiv 2111.09886, section 3.2).

    Required key: `img` (unless `input_size` is given). Added key: `mask`, (h, w) uint8 on the grid of the model's
    patches, 1 = masked.

    Args:
        mask_ratio: Share of the units to mask, in [0, 1]. Exactly ceil(ratio * units) are masked.
        mask_patch_size: Side of a unit in pixels, a multiple of `model_patch_size`.
        model_patch_size: Side of the model's patches in pixels.
        input_size: Side, or (height, width), of the image in pixels. None takes the size of each image.

    Raises:
        ValueError: An argument is out of range, or an image's side is not a multiple of `model_patch_size`.
    """

    def __init__(
        self,
        mask_ratio: float = 0.6,
        mask_patch_size: int = 32,
        model_patch_size: int = 16,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        if not 0 <= mask_ratio <= 1:
            raise ValueError(f'mask_ratio={mask_ratio} is outside [0, 1]; the published value is 0.6')
        if model_patch_size < 1:
            raise ValueError(f'model_patch_size={model_patch_size} must be a positive number of pixels, e.g. 16')
        if mask_patch_size < 1 or mask_patch_size % model_patch_size:
            near = max(1, mask_patch_size // model_patch_size) * model_patch_size
            raise ValueError(
                f'mask_patch_size={mask_patch_size} must be a positive multiple of '
                f'model_patch_size={model_patch_size}, e.g. {near}'
            )
        self.mask_ratio = mask_ratio
        self.mask_patch_size = mask_patch_size
        self.model_patch_size = model_patch_size
        self.input_size: tuple[int, int] | None = None
        if input_size is not None:
            sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
            if len(sides) != 2:
                raise ValueError(f'input_size={input_size} must be one side or (height, width)')
            self.input_size = (sides[0], sides[1])
            self._grid(self.input_size)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `mask` to the sample."""
        size = self.input_size or _image_size(results['img'])
        unit = self.mask_patch_size // self.model_patch_size
        results['mask'] = random_mask(self._grid(size), unit, self.mask_ratio)
        return results

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        patch = self.model_patch_size
        if size[0] < 1 or size[1] < 1 or size[0] % patch or size[1] % patch:
            raise ValueError(
                f'image of {size[0]} x {size[1]} px: both sides must be positive multiples of '
                f'model_patch_size={patch}; resize or crop before SimMIMMaskGenerator'
            )
        return size[0] // patch, size[1] // patch

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(mask_ratio={self.mask_ratio}, mask_patch_size={self.mask_patch_size}, '
            f'model_patch_size={self.model_patch_size}, input_size={self.input_size})'
        )


def _image_size(image: Any) -> tuple[int, int]:
    """Height and width of a (C, H, W) tensor, a (H, W[, C]) array or a PIL image."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = image.size
    return height, width
