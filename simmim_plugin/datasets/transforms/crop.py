"""Random crops, with JPEGs decoded no larger than the crop wants, and random flips.

Most of what a worker does beside decoding is in small steps, each of which finds the processor's caches full of pixels:
few calls of PyTorch, and random numbers from Python, are a good part of the speed.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simmim_plugin.datasets.images import ImageReadError, photo_rows, read_image
from simmim_plugin.datasets.jpeg import PendingJPEG, least_size
from simmim_plugin.registry import TRANSFORMS
from simmim_plugin.utils.files import printable

TRIES = 10  # torchvision's
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest')


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """torchvision's `RandomResizedCrop`: crops drawn alike, antialiased, from images that may not be decoded yet.

    With `LoadImage(defer=True)` a JPEG is decoded at a half, a quarter ... where the crop then still has at least
    `size` pixels. Pixels then differ a little from those of the whole image (docs/performance.md).

    Required and replaced key: `img`, a (C, H, W) tensor, uint8 or float32, or a `PendingJPEG`; then a (C, size, size)
    tensor, with the channels last in memory where it was so. Draws from Python's `random`.

    Args:
        size: Side, or (height, width), in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.
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
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f'size={size} must be one side or (height, width) in pixels, such as 224')
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f'scale={scale} must be two shares of the area that rise within (0, 1], as (0.67, 1.0)')
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f'ratio={ratio} must be two positive numbers that rise, such as (0.75, 1.33)')
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation={interpolation!r} is unknown; choose one of {", ".join(INTERPOLATIONS)}')
        self.size = (sides[0], sides[1])
        self.scale, self.ratio, self.interpolation = tuple(scale), tuple(ratio), interpolation
        self._log_ratio = torch.tensor(self.ratio).log().tolist()  # rounded as torchvision has it

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop and resize `img`."""
        image = results['img']
        size = image.size if isinstance(image, PendingJPEG) else (image.shape[-2], image.shape[-1])
        top, left, height, width = self._region(*size)
        if isinstance(image, PendingJPEG):
            image = self._decode(image, least_size(size, (height, width), self.size))
            if (image.shape[-2], image.shape[-1]) != size:
                top, height = _scaled(top, height, image.shape[-2] / size[0], self.size[0])
                left, width = _scaled(left, width, image.shape[-1] / size[1], self.size[1])
        results['img'] = self._resized(image, slice(top, top + height), slice(left, left + width))
        return results

    def _resized(self, image: Tensor, down: slice, across: slice) -> Tensor:
        if image.stride(0) == 1:  # channels last, as decoded; torch would make it channels first, slowly
            rows = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[down, across])
            batch = torch.from_numpy(rows.reshape(1, *rows.shape).transpose(0, 3, 1, 2))
        else:
            batch = image[None, :, down, across]
        antialias = self.interpolation != 'nearest'
        return F.interpolate(batch, self.size, mode=self.interpolation, antialias=antialias)[0]

    def _region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a crop, as torchvision's `get_params` draws it."""
        for _ in range(TRIES):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*self._log_ratio))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])  # the largest in the middle
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def _decode(self, image: PendingJPEG, least: tuple[int, int]) -> Tensor:
        try:
            return image.decode(least)
        except ValueError:  # a good part of a damaged file may do; if not, `read_image` says what is wrong
            whole = read_image(image.path, data=image.data)
        if (whole.shape[-2], whole.shape[-1]) != image.size:
            raise ImageReadError(f'{printable(image.path)}: it has {tuple(whole.shape)} pixels, not {image.size}')
        return whole

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(size={self.size}, scale={self.scale}, ratio={self.ratio}, '
            f'interpolation={self.interpolation!r})'
        )


@TRANSFORMS.register_module()
class RandomHorizontalFlip:
    """Mirror an image, left to right, with a probability; torchvision's, with OpenCV where that is quicker.

    Required and replaced key: `img`, a (C, H, W) tensor. Draws from Python's `random`.

    Args:
        p: Probability; 0 never, 1 always.

    Raises:
        ValueError: It is outside [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f'p={p} is outside [0, 1]; 0.5 mirrors every other image')
        self.p = p

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip `img`, or not."""
        if random.random() < self.p:
            image = results['img']
            rows = photo_rows(image)
            results['img'] = image.flip(-1) if rows is None else torch.from_numpy(cv2.flip(rows, 1).transpose(2, 0, 1))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(p={self.p})'


def _scaled(start: int, length: int, scale: float, target: int) -> tuple[int, int]:
    """Start and length of a crop along an axis of an image that was decoded smaller, at its pixels.

    The image is large enough for a crop of the target's length; where the rounding of both ends would make it one pixel
    less, it begins one pixel earlier.
    """
    first, last = round(start * scale), round((start + length) * scale)
    if scale < 1 and last - first < target:
        first, last = max(0, last - target), max(target, last)
    return first, last - first
