"""Random masks over square units of the image, on the grid of the model's patches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from simmim_plugin.models.masks import adapted_ratio, masked_count, random_mask, unit_grid
from simmim_plugin.registry import TRANSFORMS

PUBLISHED_RATIO, PUBLISHED_UNIT = 0.6, 32
LARGEST_GRID = 2**24  # patches of an image
LARGEST_ALPHA = 10  # beyond, the ratios are 0 or 1 for any size but the reference


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
        if not isinstance(model_patch_size, int) or model_patch_size < 1:
            raise ValueError(f'model_patch_size={model_patch_size!r} must be a positive number of pixels, e.g. 16')
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
        self._checked: tuple[Any, ...] = ()  # the last grid and ratios that were found good
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
            # One that hides all by itself was asked for.
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
        if (key := (grid, *ratios)) != self._checked:
            self._check(grid, ratios, factor)
            self._checked = key
        return ratios

    def _check(self, grid: tuple[int, int], ratios: Sequence[float], factor: float) -> None:
        """Refuse ratios that mask all or nothing though not asked for. `factor` is what `adapt` multiplied with."""
        units = [math.prod(unit_grid(grid, part.unit // self.model_patch_size)) for part in self.parts]
        counts = [
            masked_count(ratio, masked_count(part.region_ratio, n)) for part, ratio, n in zip(self.parts, ratios, units)
        ]
        if not any(counts) and any(0 not in self._asked(part) for part in self.parts):
            names = ', '.join(f'{part.name}={ratio:.4g}' for part, ratio in zip(self.parts, ratios))
            cause, mend = (f'adapt={self.adapt}', 'lower alpha or reference') if self.adapt else (names, 'raise it')
            raise ValueError(f'{cause} masks nothing of an image of {self._pixels(grid)}; {mend}')
        all_wanted = any(part.region_ratio == 1 and 1 in self._asked(part) for part in self.parts)
        for part, ratio, count, n in zip(self.parts, ratios, counts, units):
            if count == n and not all_wanted:
                raise ValueError(self._too_much(part, ratio, n, grid, factor))

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
        _check_share(f'{name}.region_ratio', cfg.get('region_ratio', 1), '1 is the whole image')
        if cfg.get('region_ratio') == 0:
            raise ValueError(f'{name}.region_ratio=0 is outside (0, 1]; 1 is the whole image')
        return _Part(f'{name}.ratio', cfg['ratio'], cfg['unit'], cfg.get('region_ratio', 1.0))

    def _check_part(self, ratio_name: str, ratio: float, unit_name: str, unit: int, usual: float) -> None:
        patch = self.model_patch_size
        _check_share(ratio_name, ratio, f'the usual value is {usual}')
        if not isinstance(unit, int) or unit < 1 or unit % patch:
            near = max(1, int(unit // patch)) * patch if isinstance(unit, int) else 2 * patch
            raise ValueError(
                f'{unit_name}={unit!r} must be a positive multiple of model_patch_size={patch}, e.g. {near}'
            )

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        patch = self.model_patch_size
        if size[0] < 1 or size[1] < 1 or size[0] % patch or size[1] % patch:
            raise ValueError(
                f'image of {size[0]} x {size[1]} px: both sides must be positive multiples of '
                f'model_patch_size={patch}; resize or crop before SimMIMMaskGenerator'
            )
        grid = size[0] // patch, size[1] // patch
        if math.prod(grid) > LARGEST_GRID:
            raise ValueError(
                f'image of {size[0]} x {size[1]} px: more than {LARGEST_GRID:,} patches of model_patch_size={patch}; '
                'is input_size in pixels?'
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


def _check_share(name: str, value: Any, usual: str) -> None:
    if not isinstance(value, int | float):
        raise ValueError(f'{name}={value!r} must be a number in [0, 1]; {usual}')
    if not 0 <= value <= 1:
        raise ValueError(f'{name}={value} is outside [0, 1]; {usual}')


def _also(optional: tuple[str, ...]) -> str:
    return f', and {", ".join(optional)} if wanted' if optional else ''


def _two_sides(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f'{name}={size} must be one side or (height, width)')
    return sides[0], sides[1]


def _checked_adapt(adapt: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(adapt, Mapping) or not set(adapt) <= {'reference', 'alpha'}:
        raise ValueError(f'adapt={adapt} must be a dict of reference (default 224) and alpha (default 0.5)')
    reference = _two_sides('adapt.reference', adapt.get('reference', 224))
    alpha = adapt.get('alpha', 0.5)
    if min(reference) < 1:
        raise ValueError(f'adapt.reference={adapt["reference"]} must be a positive number of pixels, e.g. 224')
    if not isinstance(alpha, int | float) or not 0 <= alpha <= LARGEST_ALPHA:
        raise ValueError(
            f'adapt.alpha={alpha!r} must be a number in [0, {LARGEST_ALPHA}]; 0 keeps the ratio, 1 the visible tokens'
        )
    return dict(reference=reference, alpha=alpha)


def _image_size(image: Any) -> tuple[int, int]:
    """Height and width of a (C, H, W) tensor, a (H, W[, C]) array or a PIL image."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = image.size
    return height, width


SCHEDULES = ('linear', 'cosine')


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
