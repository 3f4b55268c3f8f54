"""Transforms that load the image of a sample, and pack the sample for the model."""

import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from simmim_plugin.datasets.images import DTYPES, ImageReadError, convert_image, photo_rows, read_image
from simmim_plugin.datasets.jpeg import PendingJPEG, pending_jpeg
from simmim_plugin.models.masks import MASKS
from simmim_plugin.registry import TRANSFORMS
from simmim_plugin.utils.arguments import choice, flag, number, whole
from simmim_plugin.utils.files import MAX_BYTES, printable


def _read_pending(path: str, data: bytes | None, max_bytes: int) -> PendingJPEG | None:
    try:
        return pending_jpeg(path, data, max_bytes)
    except OSError as error:
        raise ImageReadError(f'{printable(path)}: {error}') from error


@TRANSFORMS.register_module()
class LoadImage:
    """Read the image of a sample; see `read_image` for formats and conversions.

    Required key: `img_path`; optional key: `img_bytes`, the content of the file, which is removed. Added key:
    `img`, a (channels, H, W) tensor or, with `defer`, possibly a `PendingJPEG`. An `img` that is there already (an
    array or a PIL image, as from MMPretrain's inferencers) is converted instead; no file is read then.

    Args:
        channels: Channels of the result; 3 gives RGB.
        dtype: 'uint8' (photos) or 'float32' (values as stored: medical, satellite).
        keep: Number of decoded images that each process keeps in memory; for small data sets.
        defer: Let our `RandomResizedCrop` decode JPEGs, at the scale that its crop needs. Only for 3 channels of uint8
            and images that are not kept; `ImageFolder` disables it if another transform follows.
        max_bytes: Largest size of a decoded image, in bytes; larger ones count as bad.
        nodata: Value that stands for missing data, see `read_image`; it is filled with the mean of the others.
        array_order: Order of the colours of an `img` that is an array: 'bgr' (OpenCV, MMCV) or 'rgb'.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        channels: int = 3,
        dtype: str = 'uint8',
        keep: int = 0,
        defer: bool = False,
        max_bytes: int = MAX_BYTES,
        nodata: float | None = None,
        array_order: str = 'bgr',
    ) -> None:
        self.channels = whole('LoadImage.channels', channels, 1, hint='3 for RGB')
        self.dtype = choice('LoadImage.dtype', dtype, DTYPES)
        self.keep = whole('LoadImage.keep', keep, 0, hint='the number of images to keep in memory')
        self.max_bytes = whole('LoadImage.max_bytes', max_bytes, 1, hint='512 MiB is usual: 2**29')
        if nodata is not None and not (isinstance(nodata, float) and math.isnan(nodata)):
            number('LoadImage.nodata', nodata, hint='e.g. -9999')
        self.nodata = nodata
        self.defer = flag('LoadImage.defer', defer) and channels == 3 and dtype == 'uint8'
        self.array_order = choice('LoadImage.array_order', array_order, ('bgr', 'rgb'))
        self._kept: dict[str, Tensor] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` to the sample."""
        if 'img' in results:
            return {**results, 'img': convert_image(results['img'], self.channels, self.dtype, self.array_order)}
        path, data = results['img_path'], results.pop('img_bytes', None)
        image: Tensor | PendingJPEG | None = self._kept.get(path)
        if image is None and self.defer and len(self._kept) >= self.keep:
            image = _read_pending(path, data, self.max_bytes)
        if image is None:
            image = read_image(path, self.channels, self.dtype, data, self.max_bytes, self.nodata)
            if len(self._kept) < self.keep:
                self._kept[path] = image
        results['img'] = image
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channels={self.channels}, dtype={self.dtype!r})'


def _contiguous(image: Tensor) -> Tensor:
    """Make an image contiguous; for a decoded JPEG by OpenCV, which is several times as fast as torch."""
    rows = photo_rows(image)
    if rows is None:
        return image.contiguous()
    planes = np.empty(image.shape, dtype=np.uint8)
    cv2.split(rows, list(planes))
    return torch.from_numpy(planes)


@TRANSFORMS.register_module()
class PackSimMIMInputs:
    """Pack a sample: `inputs`, the (C, H, W) image, its masks, (h, w) uint8, and `img_path`.

    Masks are `mask`, and `mask_local` and `mask_global` if the generator drew two.

    Plain tensors are collated to one tensor per batch, which is much cheaper than one data object per image.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Sample -> `{'inputs': tensor, 'mask': tensor, ..., 'img_path': str}`."""
        image = results['img']
        packed = {
            'inputs': _contiguous(image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image)))
        }
        if 'img_path' in results:
            packed['img_path'] = results['img_path']  # for FaultHook
        for name in MASKS:
            if name in results:
                packed[name] = torch.from_numpy(results[name].astype(np.uint8, copy=False))
        return packed

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
