"""Random crops, with JPEGs decoded no larger than the crop wants."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from simmim_plugin.jpeg import PendingJPEG, least_size
from simmim_plugin.loading import ImageReadError, printable, read_image
from simmim_plugin.registry import TRANSFORMS

TRIES = 10  # torchvision's
INTERPOLATIONS = ('bilinear', 'bicubic', 'nearest')


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """torchvision's `RandomResizedCrop`: the same random crops, antialiased, from images that may not be decoded yet.

    With `LoadImage(defer=True)` a JPEG is decoded at a half, a quarter ... where the crop then still has at least
    `size` pixels. Pixels then differ a little from those of the whole image (docs/performance.md).

    Required and replaced key: `img`, a (C, H, W) tensor or a `PendingJPEG`; then a (C, size, size) tensor.

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
            down, across = image.shape[-2] / size[0], image.shape[-1] / size[1]
            top, height = _scaled(top, height, down, self.size[0])
            left, width = _scaled(left, width, across, self.size[1])
        image = image[:, top : top + height, left : left + width]
        if image.stride(0) == 1:  # channels last, as decoded; torch would make it channels first, slowly
            image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        mode = InterpolationMode(self.interpolation)
        results['img'] = _planes(resize(image, list(self.size), interpolation=mode, antialias=True))
        return results

    def _region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of a crop, as torchvision's `get_params` draws it, from the same random numbers."""
        for _ in range(TRIES):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            ratio = math.exp(torch.empty(1).uniform_(*self._log_ratio).item())
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = (int(torch.randint(0, room + 1, (1,)).item()) for room in (height - h, width - w))
                return top, left, h, w
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


def _planes(image: Tensor) -> Tensor:
    """The same (C, H, W) image, contiguous; with OpenCV, several times as fast as torch, for what a JPEG becomes."""
    rows = image.permute(1, 2, 0)
    if image.dtype != torch.uint8 or len(image) != 3 or not rows.is_contiguous():
        return image.contiguous()
    planes = torch.empty(image.shape, dtype=torch.uint8)
    cv2.split(rows.numpy(), list(planes.numpy()))
    return planes


def _scaled(start: int, length: int, scale: float, target: int) -> tuple[int, int]:
    """Start and length of a crop along an axis of an image that was decoded smaller, at its pixels.

    The image is large enough for a crop of the target's length; where the rounding of both ends would make it one pixel
    less, it begins one pixel earlier.
    """
    first, last = round(start * scale), round((start + length) * scale)
    if scale < 1 and last - first < target:
        first, last = max(0, last - target), max(target, last)
    return first, last - first
