"""Random masks over square units of the image, on the grid of the model's patches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from simmim_plugin.registry import TRANSFORMS

Mask = np.ndarray[tuple[int, int], np.dtype[np.uint8]]  # (h, w), 1 = masked
PUBLISHED_RATIO, PUBLISHED_UNIT = 0.6, 32
SCHEDULES = ('linear', 'cosine')


def masked_count(ratio: float, units: int) -> int:
    """ceil(ratio * units), free of floating-point residue: 0.07 of 100 units is 7, not 8."""
    return math.ceil(round(ratio * units, 9))


def unit_grid(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """Rows and columns of units, `unit` patches a side, that cover a grid of patches; edge units may stick out."""
    return math.ceil(grid[0] / unit), math.ceil(grid[1] / unit)


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
    mask = units.reshape(rows, columns).repeat(unit, axis=0).repeat(unit, axis=1)
    return np.ascontiguousarray(mask[: grid[0], : grid[1]])


def adapted_ratio(ratio: float, tokens: int, reference_tokens: int, alpha: float) -> float:
    """Ratio for an image of another size: keep' = keep * (reference_tokens / tokens)^alpha, keep = 1 - ratio.

    Clipped to [0, 1]. With alpha 0 the ratio is constant, with alpha 1 the number of visible tokens is.
    """
    return 1 - min(1.0, (1 - ratio) * (reference_tokens / tokens) ** alpha)


def average_distance(mask: Mask, patch_size: int) -> float:
    """AvgDist (arXiv 2111.09886): mean distance of the masked pixels to the nearest visible one.

    Args:
        mask: (h, w) over the patches, 1 = masked.
        patch_size: Side of a patch in pixels.

    Returns:
        Pixels, Euclidean, between centres of pixels; 0 if nothing is masked.

    Raises:
        ValueError: Nothing is visible.
    """
    if mask.all():
        raise ValueError('AvgDist is not defined where all is masked; use a smaller ratio')
    pixels = mask.astype(np.uint8).repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    distances = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(distances.sum() / max(1, pixels.sum()))


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


@dataclass
class _Part:
    """One of the masks; `name` is its ratio's argument."""

    name: str
    ratio: float
    unit: int  # pixels
    region_ratio: float = 1.0


@TRANSFORMS.register_module()
class SimMIMMaskGenerator:
    """Add a random mask to a sample: the published SimMIM masking, or a local and a global mask at once.

    Published (arXiv 2111.09886, section 3.2): `mask_ratio` of the units of `mask_patch_size` pixels. Simultaneous:
    `local` and `global_` instead, drawn independently; a patch is visible if neither masks it. Should they hide the
    whole image together, both are drawn again.

    Required key: `img` (unless `input_size` is given). Added keys, (h, w) uint8 on the grid of the model's patches, 1 =
    masked: `mask`, and, where both are given, `mask_local` and `mask_global`, whose union `mask` is.

    Args:
        mask_ratio: Share of the units to mask, in [0, 1]. Exactly ceil(ratio * units) are masked. None: 0.6.
        mask_patch_size: Side of a unit in pixels, a multiple of `model_patch_size`. None: 32. Units need not divide
            the image: those at the lower and right edges are cut.
        model_patch_size: Side of the model's patches in pixels.
        input_size: Side, or (height, width), of the image in pixels. None takes the size of each image.
        local: `dict(ratio=0.75, unit=32, region_ratio=1.0)`, instead of the two arguments above: ceil(region_ratio *
            units) units, at random, form the prediction region; ceil(ratio * units) of the region's are masked.
        global_: `dict(ratio=0.1, unit=64)`: coarse units over the whole image. (The underscore keeps the name apart
            from Python's keyword.)
        adapt: `dict(reference=224, alpha=0.5)` adapts every ratio to the size of the image, see `adapted_ratio`; the
            ratios are meant for images of `reference`, a side or (height, width) in pixels. None: constant ratios.

    Raises:
        ValueError: An argument is out of range, an image's side is not a multiple of `model_patch_size`, or all or
            nothing of an image would be masked although no ratio is 1, or not all are 0.
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
        if model_patch_size < 1:
            raise ValueError(f'model_patch_size={model_patch_size} must be a positive number of pixels, e.g. 16')
        self.model_patch_size = model_patch_size
        self.parts: list[_Part] = []
        if local is None and global_ is None:
            ratio = PUBLISHED_RATIO if mask_ratio is None else mask_ratio
            unit = PUBLISHED_UNIT if mask_patch_size is None else mask_patch_size
            self._check_part('mask_ratio', ratio, 'mask_patch_size', unit, PUBLISHED_RATIO)
            self.parts.append(_Part('mask_ratio', ratio, unit))
        elif mask_ratio is not None or mask_patch_size is not None:
            raise ValueError(
                f'mask_ratio={mask_ratio} and mask_patch_size={mask_patch_size} do nothing beside local or global_; '
                'give ratio and unit inside local=dict(...) and global_=dict(...)'
            )
        for name, cfg, optional in (('local', local, ('region_ratio',)), ('global_', global_, ())):
            if cfg is not None:
                self.parts.append(self._part(name, cfg, optional))
        self.adapt = None if adapt is None else _checked_adapt(adapt)
        self.ramps: dict[str, Ramp] = {}  # by name of the argument; from MaskRatioHook
        self.input_size = None if input_size is None else _two_sides('input_size', input_size)
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
            if not union.all() or any(mask.all() for mask in masks):  # one that hides all by itself was asked for
                break
        results['mask'] = union
        if len(masks) == 2:
            results['mask_local'], results['mask_global'] = masks
        return results

    def ratios(self, grid: tuple[int, int], iteration: int | None = None) -> list[float]:
        """Ratio of each mask on a grid of patches, after ramp and adaptation, in the order local, global.

        Args:
            grid: Height and width in patches.
            iteration: For ratios that a `MaskRatioHook` ramps; None: those of the arguments.

        Raises:
            ValueError: All or nothing would be masked though not asked for.
        """
        ratios = [
            self.ramps[part.name](iteration) if part.name in self.ramps and iteration is not None else part.ratio
            for part in self.parts
        ]
        factor = 1.0
        if self.adapt is not None:
            reference = math.prod(self.adapt['reference']) / self.model_patch_size**2
            factor = (reference / math.prod(grid)) ** self.adapt['alpha']
            ratios = [adapted_ratio(ratio, math.prod(grid), reference, self.adapt['alpha']) for ratio in ratios]
        units = [math.prod(unit_grid(grid, part.unit // self.model_patch_size)) for part in self.parts]
        counts = [
            masked_count(ratio, masked_count(part.region_ratio, n)) for part, ratio, n in zip(self.parts, ratios, units)
        ]
        if not any(counts) and any(0 not in self._asked(part) for part in self.parts):
            raise ValueError(
                f'adapt={self.adapt} masks nothing of an image of {self._pixels(grid)}; lower alpha or reference'
            )
        all_wanted = any(part.region_ratio == 1 and 1 in self._asked(part) for part in self.parts)
        for part, ratio, count, n in zip(self.parts, ratios, counts, units):
            if count == n and not all_wanted:
                raise ValueError(self._too_much(part, ratio, n, grid, factor))
        return ratios

    def _asked(self, part: _Part) -> tuple[float, ...]:
        """Ratios that the user named for a mask: the ends of its ramp, or the one."""
        ramp = self.ramps.get(part.name)
        return (part.ratio,) if ramp is None else (ramp.start, ramp.end)

    def _too_much(self, part: _Part, ratio: float, units: int, grid: tuple[int, int], factor: float) -> str:
        """Message: all is masked though not asked for. `factor` is what `adapt` multiplied the kept share with."""
        largest = math.floor((1 - 1 / units / factor) * 100) / 100
        return (
            f'{part.name}={ratio:.4g}'
            + (' after adapt' if self.adapt else '')
            + (f' of a region of region_ratio={part.region_ratio}' if part.region_ratio < 1 else '')
            + f' masks all {units} units of {part.unit} px of an image of {self._pixels(grid)}; use smaller units'
            + (f', a ratio of at most {largest}' if largest > 0 else '')
            + ', or 1 if all shall be masked'
        )

    def _pixels(self, grid: tuple[int, int]) -> str:
        return f'{grid[0] * self.model_patch_size} x {grid[1] * self.model_patch_size} px'

    def _part(self, name: str, cfg: Mapping[str, Any], optional: tuple[str, ...]) -> _Part:
        known = ('ratio', 'unit', *optional)
        if not isinstance(cfg, Mapping) or not {'ratio', 'unit'} <= set(cfg) <= set(known):
            raise ValueError(f'{name}={cfg} must be a dict of {" and ".join(known[:2])}{_also(optional)}')
        self._check_part(f'{name}.ratio', cfg['ratio'], f'{name}.unit', cfg['unit'], 0.75 if name == 'local' else 0.1)
        if not 0 < cfg.get('region_ratio', 1) <= 1:
            raise ValueError(f'{name}.region_ratio={cfg["region_ratio"]} is outside (0, 1]; 1 is the whole image')
        return _Part(f'{name}.ratio', cfg['ratio'], cfg['unit'], cfg.get('region_ratio', 1.0))

    def _check_part(self, ratio_name: str, ratio: float, unit_name: str, unit: int, usual: float) -> None:
        patch = self.model_patch_size
        if not 0 <= ratio <= 1:
            raise ValueError(f'{ratio_name}={ratio} is outside [0, 1]; the usual value is {usual}')
        if unit < 1 or unit % patch:
            raise ValueError(
                f'{unit_name}={unit} must be a positive multiple of model_patch_size={patch}, '
                f'e.g. {max(1, unit // patch) * patch}'
            )

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        patch = self.model_patch_size
        if size[0] < 1 or size[1] < 1 or size[0] % patch or size[1] % patch:
            raise ValueError(
                f'image of {size[0]} x {size[1]} px: both sides must be positive multiples of '
                f'model_patch_size={patch}; resize or crop before SimMIMMaskGenerator'
            )
        return size[0] // patch, size[1] // patch

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


def _also(optional: tuple[str, ...]) -> str:
    return f', and {", ".join(optional)} if wanted' if optional else ''


def _two_sides(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f'{name}={size} must be one side or (height, width)')
    return sides[0], sides[1]


def _checked_adapt(adapt: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(adapt, Mapping) or not set(adapt) <= {'reference', 'alpha'}:
        raise ValueError(f'adapt={adapt} must be a dict of reference (default 224) and alpha (default 0.5)')
    reference = _two_sides('adapt.reference', adapt.get('reference', 224))
    alpha = adapt.get('alpha', 0.5)
    if min(reference) < 1:
        raise ValueError(f'adapt.reference={adapt["reference"]} must be a positive number of pixels, e.g. 224')
    if alpha < 0:
        raise ValueError(f'adapt.alpha={alpha} must not be negative; 0 keeps the ratio, 1 the number of visible tokens')
    return dict(reference=reference, alpha=alpha)


def _image_size(image: Any) -> tuple[int, int]:
    """Height and width of a (C, H, W) tensor, a (H, W[, C]) array or a PIL image."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = image.size
    return height, width
