"""Random crops, with JPEGs decoded at the smallest scale that the crop needs, and random flips.

Apart from decoding, a worker runs many small operations on a cold cache, so much of the speed comes from few PyTorch
calls and from Python's random numbers.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_plugin.datasets.images import ImageReadError, photo_rows, read_image
from simmim_plugin.datasets.jpeg import PendingJPEG, least_size
from simmim_plugin.registry import TRANSFORMS
from simmim_plugin.utils.arguments import choice, number, sides
from simmim_plugin.utils.files import printable

TRIES = 10  # torchvision's
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest')


@dataclass(frozen=True)
class SizeSteps:
    """An image size that changes during training: pairs of a first iteration and (height, width), from iteration 0."""

    steps: tuple[tuple[int, tuple[int, int]], ...]

    def __call__(self, iteration: int) -> tuple[int, int]:
        """Size at an iteration, counted from 0."""
        return [size for first, size in self.steps if first <= iteration][-1]


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """Random crop resized with antialiasing, with torchvision's distribution; accepts JPEGs that are not decoded yet.

    With `LoadImage(defer=True)`, a JPEG is decoded at 1/2, 1/4 ... of its size if the crop then still has at least
    `size` pixels. Pixels then differ a little from those of the full image (docs/performance.md).

    Required and replaced key: `img`, a (C, H, W) tensor, uint8 or float32, or a `PendingJPEG`; becomes a
    (C, size, size) tensor that keeps the memory order of its input. An (H, W, C) array, as MMCV loads it, becomes a
    (size, size, C) array. Uses Python's `random`.

    Args:
        size: Side, or (height, width), in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest aspect ratio, width / height.
        interpolation: 'bilinear', 'bicubic' or 'nearest'.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.67, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = 'bilinear',
    ) -> None:
        self.size = sides('size', size)
        self.scale = _range('scale', scale, 1, 'two shares of the area in (0, 1], such as (0.67, 1)')
        self.ratio = _range('ratio', ratio, sys.float_info.max, 'two positive numbers, such as (0.75, 1.33)')
        self.interpolation = choice('interpolation', interpolation, INTERPOLATIONS)
        self.steps: SizeSteps | None = None  # set by ImageSizeHook, for samples that carry their iteration
        self._log_ratio = torch.tensor(self.ratio).log().tolist()  # in float32, like torchvision

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop and resize `img`."""
        image, target = _as_tensor(results['img']), self.size
        if self.steps is not None and 'iteration' in results:
            target = self.steps(results['iteration'])
        size = image.size if isinstance(image, PendingJPEG) else (image.shape[-2], image.shape[-1])
        top, left, height, width = self._region(*size)
        if isinstance(image, PendingJPEG):
            image = self._decode(image, least_size(size, (height, width), target))
            if (image.shape[-2], image.shape[-1]) != size:
                top, height = _scaled(top, height, image.shape[-2] / size[0], target[0])
                left, width = _scaled(left, width, image.shape[-1] / size[1], target[1])
        resized = self._resized(image, slice(top, top + height), slice(left, left + width), target)
        results['img'] = _like(results['img'], resized)
        return results

    def _resized(self, image: Tensor, down: slice, across: slice, size: tuple[int, int]) -> Tensor:
        if image.stride(0) == 1:  # channels last, as decoded; torch would convert it to channels first, slowly
            rows = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[down, across])
            batch = torch.from_numpy(rows.reshape(1, *rows.shape).transpose(0, 3, 1, 2))
        else:
            batch = image[None, :, down, across]
        antialias = self.interpolation != 'nearest'
        return F.interpolate(batch, size, mode=self.interpolation, antialias=antialias)[0]

    def _region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Sample top, left, height and width of a crop, like torchvision's `get_params`."""
        for _ in range(TRIES):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*self._log_ratio))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])  # the largest central crop
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def _decode(self, image: PendingJPEG, least: tuple[int, int]) -> Tensor:
        try:
            return image.decode(least)
        except ValueError:  # `read_image` may read part of a damaged file, or reports what is wrong
            decoded = read_image(image.path, data=image.data, max_bytes=image.max_bytes)
        if (decoded.shape[-2], decoded.shape[-1]) != image.size:
            raise ImageReadError(f'{printable(image.path)}: it has {tuple(decoded.shape)} pixels, not {image.size}')
        return decoded

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, '
            f'interpolation={self.interpolation!r})'
        )


@TRANSFORMS.register_module()
class RandomHorizontalFlip:
    """Flip an image left to right at random, like torchvision; with OpenCV where that is faster.

    Required and replaced key: `img`, a (C, H, W) tensor or an (H, W, C) array. Uses Python's `random`.

    Args:
        p: Probability of flipping.

    Raises:
        ValueError: It is outside [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = number('RandomHorizontalFlip.p', p, 0, 1, '0.5 flips every other image')

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip `img`, or not."""
        if random.random() < self.p:
            image = _as_tensor(results['img'])
            rows = photo_rows(image)
            flipped = image.flip(-1) if rows is None else torch.from_numpy(cv2.flip(rows, 1).transpose(2, 0, 1))
            results['img'] = _like(results['img'], flipped)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(p={self.p})'


def _as_tensor(image: Any) -> Any:
    """An (H, W[, C]) array as a (C, H, W) tensor, which shares its memory; others as they are."""
    return torch.from_numpy(np.atleast_3d(image).transpose(2, 0, 1)) if isinstance(image, np.ndarray) else image


def _like(given: Any, image: Tensor) -> Any:
    """The tensor itself, or an (H, W, C) array if that was given."""
    return image.numpy().transpose(1, 2, 0) if isinstance(given, np.ndarray) else image


def _range(name: str, value: Any, most: float, words: str) -> tuple[float, float]:
    """Check a smallest and a largest value in (0, most]."""
    low, high = value if isinstance(value, Sequence) and len(value) == 2 else (None, None)
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not 0 < low <= high <= most:
        raise ValueError(f'{name}={value!r} must be {words}, the smaller one first')
    return float(low), float(high)


def _scaled(start: int, length: int, scale: float, target: int) -> tuple[int, int]:
    """Start and length of a crop along one axis, in pixels of an image that was decoded at a smaller scale.

    The image is large enough for a crop of the target's length; if rounding makes the crop one pixel shorter, it starts
    one pixel earlier.
    """
    first, last = round(start * scale), round((start + length) * scale)
    if scale < 1 and last - first < target:
        first, last = max(0, last - target), max(target, last)
    return first, last - first
