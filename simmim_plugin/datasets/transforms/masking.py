"""SimMIMMaskGenerator: random masks of square units, on the grid of the model's patches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from simmim_plugin.models.masks import adapted_ratio, masked_count, random_mask, unit_grid
from simmim_plugin.registry import TRANSFORMS
from simmim_plugin.utils.arguments import grid_of, keys, number, sides, whole

PUBLISHED_RATIO, PUBLISHED_UNIT = 0.6, 32
LARGEST_GRID = 2**24  # patches of an image
LARGEST_ALPHA = 10  # with a larger one, ratios are 0 or 1 for any size but the reference
SCHEDULES = ('linear', 'cosine')
RATIOS = ('mask_ratio', 'local.ratio', 'global_.ratio')  # that a ramp can change


@dataclass(frozen=True)
class Ramp:
    """A ratio as a function of the iteration: `start` up to iteration `begin`, `end` from `until` on."""

    start: float
    end: float
    begin: int
    until: int
    schedule: str  # one of SCHEDULES

    def __call__(self, iteration: int) -> float:
        """Ratio at an iteration, counted from 0."""
        progress = min(1.0, max(0.0, (iteration - self.begin) / (self.until - self.begin)))
        if self.schedule == 'cosine':
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class UnitMask:
    """Settings of one mask: ceil(`ratio` * n) units of a random region of n = ceil(`region_ratio` * all units) units.

    Args:
        name: Argument that sets the ratio, for messages and ramps: 'mask_ratio', 'local.ratio' or 'global_.ratio'.
        ratio: In [0, 1].
        unit: Side of a unit in pixels.
        region_ratio: In (0, 1]; 1 is the whole image.
    """

    name: str
    ratio: float
    unit: int
    region_ratio: float = 1.0

    def __post_init__(self) -> None:
        usual = {'local.ratio': 0.75, 'global_.ratio': 0.1}.get(self.name, PUBLISHED_RATIO)
        number(self.name, self.ratio, 0, 1, f'the usual value is {usual}')
        number(self.name.replace('.ratio', '.region_ratio'), self.region_ratio, 0, 1, '1 is the whole image', ends='(]')


@TRANSFORMS.register_module()
class SimMIMMaskGenerator:
    """Add a random mask to a sample: the published SimMIM masking, or a local and a global mask at once.

    Published (arXiv 2111.09886, section 3.2): `mask_ratio` of the units of `mask_patch_size` pixels. Simultaneous:
    `local` and `global_` instead, sampled independently; a patch is visible if neither masks it. If their union masks
    the whole image, both are sampled again.

    Required key: `img` (unless `input_size` is given). Added keys, (h, w) uint8 on the grid of the model's patches, 1 =
    masked: `mask`, and, where both are given, `mask_local` and `mask_global`, whose union `mask` is.

    Args:
        mask_ratio: Share of the units to mask, in [0, 1]. Exactly ceil(ratio * units) are masked. None: 0.6.
        mask_patch_size: Side of a unit in pixels, a multiple of `model_patch_size`. None: 32. Units need not divide
            the image: those at the bottom and right edges are cropped.
        model_patch_size: Side of the model's patches in pixels.
        input_size: Side, or (height, width), of the image in pixels. None: the size of each image.
        local: `dict(ratio=0.75, unit=32, region_ratio=1.0)`, instead of the two arguments above: ceil(region_ratio *
            units) random units form the prediction region, of which ceil(ratio * units in it) are masked.
        global_: `dict(ratio=0.1, unit=64)`: coarse units over the whole image. (`global` is a keyword of
            Python.)
        adapt: `dict(reference=224, alpha=0.5)` adapts each ratio to the image size, see `adapted_ratio`; the ratios
            are those for images of `reference`, a side or (height, width) in pixels. None: constant ratios.

    Raises:
        ValueError: An argument is out of range, an image's side is not a multiple of `model_patch_size`, or all of an
            image would be masked although no ratio is 1, or nothing although not all are 0.
    """

    def __init__(
        self,
        mask_ratio: float | None = None,
        mask_patch_size: int | None = None,
        model_patch_size: int = 16,
        input_size: int | Sequence[int] | None = None,
        local: Mapping[str, Any] | None = None,
        global_: Mapping[str, Any] | None = None,
        adapt: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_patch_size = whole('model_patch_size', model_patch_size, 1, hint='e.g. 16')
        if local is None and global_ is None:
            ratio = PUBLISHED_RATIO if mask_ratio is None else mask_ratio
            unit = PUBLISHED_UNIT if mask_patch_size is None else mask_patch_size
            self.parts = [UnitMask('mask_ratio', ratio, self._unit('mask_patch_size', unit))]
        elif mask_ratio is not None or mask_patch_size is not None:
            raise ValueError(
                f'mask_ratio={mask_ratio} and mask_patch_size={mask_patch_size} have no effect with local or global_; '
                'give ratio and unit inside local=dict(...) and global_=dict(...)'
            )
        else:
            self.parts = []
            for name, given, optional in (('local', local, ['region_ratio']), ('global_', global_, [])):
                if given is not None:
                    part = keys(name, given, ['ratio', 'unit'], optional)
                    unit = self._unit(f'{name}.unit', part['unit'])
                    self.parts.append(UnitMask(f'{name}.ratio', part['ratio'], unit, part.get('region_ratio', 1.0)))
        self.adapt = None if adapt is None else _checked_adapt(adapt)
        self.ramps: dict[str, Ramp] = {}  # argument -> ramp; set by MaskRatioHook
        self._checked: tuple[Any, ...] = ()  # grid and ratios that passed `_check` last
        self.input_size = None if input_size is None else sides('input_size', input_size)
        if self.input_size is not None:
            self.ratios(self._grid(self.input_size))

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the mask, or masks, to the sample."""
        grid = self._grid(self.input_size or _image_size(results['img']))
        ratios = self.ratios(grid, results.get('iteration'))
        patch = self.model_patch_size
        while True:
            masks = [
                random_mask(grid, part.unit // patch, ratio, region_ratio=part.region_ratio)
                for part, ratio in zip(self.parts, ratios)
            ]
            union = masks[0] if len(masks) == 1 else masks[0] | masks[1]
            # A single mask over everything is intended, see `_check`.
            if len(masks) == 1 or not union.all() or any(mask.all() for mask in masks):
                break
        results['mask'] = union
        if len(masks) == 2:
            results['mask_local'], results['mask_global'] = masks
        return results

    def ratios(self, grid: tuple[int, int], iteration: int | None = None) -> list[float]:
        """Ratio of each mask on a grid of patches, after ramp and adaptation, in the order local, global.

        Args:
            grid: Height and width in patches.
            iteration: For the ramp of a `MaskRatioHook`; None: the ratios of the arguments.

        Raises:
            ValueError: Everything or nothing would be masked, and no argument says so.
        """
        ratios = [
            self.ramps[part.name](iteration) if part.name in self.ramps and iteration is not None else part.ratio
            for part in self.parts
        ]
        if self.adapt is not None:
            reference = math.prod(self.adapt['reference']) / self.model_patch_size**2
            ratios = [adapted_ratio(ratio, math.prod(grid), reference, self.adapt['alpha']) for ratio in ratios]
        if (key := (grid, *ratios)) != self._checked:
            self._check(grid, ratios)
            self._checked = key
        return ratios

    def _check(self, grid: tuple[int, int], ratios: Sequence[float]) -> None:
        """Reject ratios that mask everything or nothing, unless an argument is 1, or all are 0."""
        given = [self._ends(part) for part in self.parts]
        all_intended = any(1 in ends and part.region_ratio == 1 for part, ends in zip(self.parts, given))
        none_intended = all(0 in ends for ends in given)
        anything = False
        for part, ratio in zip(self.parts, ratios):
            units = math.prod(unit_grid(grid, part.unit // self.model_patch_size))
            count = masked_count(ratio, masked_count(part.region_ratio, units))
            anything |= count > 0
            if count == units and not all_intended:
                raise ValueError(
                    f'{self._named(part, ratio)} masks all {units} units of {part.unit} px of an image of '
                    f'{self._pixels(grid)}; use smaller units or a smaller ratio, or 1 to mask everything'
                )
        if not anything and not none_intended:
            names = ', '.join(self._named(part, ratio) for part, ratio in zip(self.parts, ratios))
            remedy = 'lower adapt.alpha or adapt.reference' if self.adapt else 'use a larger ratio'
            raise ValueError(f'{names} masks nothing of an image of {self._pixels(grid)}; {remedy}')

    def _ends(self, part: UnitMask) -> tuple[float, ...]:
        """Ratios that the user gave for a mask: a constant, or both ends of its ramp."""
        ramp = self.ramps.get(part.name)
        return (part.ratio,) if ramp is None else (ramp.start, ramp.end)

    def _named(self, part: UnitMask, ratio: float) -> str:
        region = f' of region_ratio={part.region_ratio}' if part.region_ratio < 1 else ''
        return f'{part.name}={ratio:.4g}{region}' + (f' (adapt={self.adapt})' if self.adapt else '')

    def _pixels(self, grid: tuple[int, int]) -> str:
        return f'{grid[0] * self.model_patch_size} x {grid[1] * self.model_patch_size} px'

    def _unit(self, name: str, unit: Any) -> int:
        patch = self.model_patch_size
        if not isinstance(unit, int) or unit < 1 or unit % patch:
            near = max(1, unit // patch) * patch if isinstance(unit, int) else 2 * patch
            raise ValueError(f'{name}={unit!r} must be a multiple of model_patch_size={patch}, e.g. {near}')
        return unit

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        grid = grid_of('image', size, self.model_patch_size, hint='resize or crop before SimMIMMaskGenerator')
        if math.prod(grid) > LARGEST_GRID:
            raise ValueError(
                f'image of {size[0]} x {size[1]} px: more than {LARGEST_GRID:,} patches of '
                f'model_patch_size={self.model_patch_size}; is input_size in pixels?'
            )
        return grid

    def __repr__(self) -> str:
        parts = ', '.join(
            f'{part.name}={part.ratio} in units of {part.unit} px'
            + (f' of a region of {part.region_ratio}' if part.region_ratio < 1 else '')
            for part in self.parts
        )
        return (
            f'{type(self).__name__}({parts}, model_patch_size={self.model_patch_size}, '
            f'input_size={self.input_size}, adapt={self.adapt})'
        )


def _checked_adapt(adapt: Mapping[str, Any]) -> dict[str, Any]:
    given = keys('adapt', adapt, [], ['reference', 'alpha'])
    alpha = given.get('alpha', 0.5)
    return dict(
        reference=sides('adapt.reference', given.get('reference', 224)),
        alpha=number('adapt.alpha', alpha, 0, LARGEST_ALPHA, '0 keeps the ratio, 1 the number of visible patches'),
    )


def _image_size(image: Any) -> tuple[int, int]:
    """Height and width of a (C, H, W) tensor, a (H, W[, C]) array or a PIL image."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = image.size
    return height, width
