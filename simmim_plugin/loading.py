"""From a file to a (C, H, W) tensor, and from a sample to what the model takes."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from simmim_plugin.registry import TRANSFORMS

ARRAY_SUFFIXES = ('.npy',)
TIFF_SUFFIXES = ('.tif', '.tiff')
PHOTO_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm', '.pgm', '.gif')
SUFFIXES = PHOTO_SUFFIXES + TIFF_SUFFIXES + ARRAY_SUFFIXES
DTYPES = ('uint8', 'float32')
MODES = {1: 'L', 3: 'RGB'}  # PIL's names, by number of channels


class ImageReadError(ValueError):
    """A file that cannot be read as the image that the config asks for. The message is 'path: reason'."""


def read_image(path: str | os.PathLike[str], channels: int = 3, dtype: str = 'uint8') -> Tensor:
    """Read a photo, a TIFF or a .npy array.

    Photos (everything PIL reads) are turned upright by their EXIF tag and converted to the wanted number of channels:
    for 3, grey is repeated, CMYK, palettes and YCbCr become RGB, alpha is dropped; for 1, colours become luma. TIFF and
    .npy hold (H, W), (H, W, C) or (C, H, W); only a single channel is repeated for `channels=3`, and an alpha channel
    dropped (4 where 3 are wanted).

    Args:
        path: The file.
        channels: Channels of the result.
        dtype: 'uint8': 8-bit values; 16-bit ones are divided by 257, wider and floating-point files are refused.
            'float32': the values as stored.

    Returns:
        (channels, H, W), uint8 or float32.

    Raises:
        ImageReadError: The file is missing, damaged, or does not hold such an image.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix in ARRAY_SUFFIXES:
            array = np.load(path, allow_pickle=False)
        elif suffix in TIFF_SUFFIXES:
            array = tifffile.imread(path)
        else:
            array = _read_photo(path, channels)
        return torch.from_numpy(_as_dtype(_channels_first(array, channels), dtype))
    # The many decoders raise many types for a damaged file. Whatever it was, it is named, with the file.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageReadError(f'{os.fspath(path)}: {reason}') from error


def _read_photo(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    with Image.open(path) as opened:
        image: Image.Image = opened
        ImageOps.exif_transpose(image, in_place=True)
        many_bits = image.mode.startswith('I') or image.mode == 'F'  # 16 or 32 bits, one channel
        if channels in MODES and not many_bits:
            if image.mode == 'P' and 'transparency' in image.info:  # PIL wants this detour
                image = image.convert('RGBA')
            return np.asarray(image.convert(MODES[channels]))
        return np.asarray(image)


def _channels_first(array: np.ndarray, channels: int) -> np.ndarray:
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] not in (channels, 1) and array.shape[2] <= array.shape[0]:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f'an array of shape {array.shape} is no image; expected (H, W), (H, W, C) or (C, H, W)')
    if channels == 3 and array.shape[0] == 1:
        array = array.repeat(3, axis=0)
    elif channels == 3 and array.shape[0] == 4:
        array = array[:3]
    if array.shape[0] != channels:
        raise ValueError(
            f'it has {array.shape[0]} channels, but channels={channels} are wanted; set channels of LoadImage, and '
            'in_channels, mean and std of the model'
        )
    return array


def _as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == 'float32':
        return np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16 or (array.dtype == np.int32 and _fits_16_bits(array)):  # PIL reads some 16 bits as 32
        array = np.round(array / 257)
    elif array.dtype != np.uint8:
        raise ValueError(f"it holds {array.dtype} values, which have no fixed range; set dtype='float32' in LoadImage")
    return np.array(array, dtype=np.uint8, order='C')


def _fits_16_bits(array: np.ndarray) -> bool:
    return bool(array.min() >= 0 and array.max() <= 65535)


@TRANSFORMS.register_module()
class LoadImage:
    """Read the image of a sample; see `read_image` for formats and conversions.

    Required key: `img_path`. Added key: `img`, a (channels, H, W) tensor.

    Args:
        channels: Channels of the result; 3 gives RGB.
        dtype: 'uint8' (photos) or 'float32' (values as stored: medical, satellite).
        keep: How many decoded images each process keeps in memory, for small sets that are read again and again.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, channels: int = 3, dtype: str = 'uint8', keep: int = 0) -> None:
        if channels < 1:
            raise ValueError(f'channels={channels} must be positive')
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r} is unknown; choose one of {", ".join(map(repr, DTYPES))}')
        self.channels = channels
        self.dtype = dtype
        self.read = functools.lru_cache(keep)(read_image) if keep > 0 else read_image

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` to the sample."""
        results['img'] = self.read(results['img_path'], self.channels, self.dtype)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channels={self.channels}, dtype={self.dtype!r})'


@TRANSFORMS.register_module()
class PackSimMIMInputs:
    """Keep what the model takes: `inputs`, the (C, H, W) image, and `mask`, (h, w), if there is one.

    Plain tensors stack into one tensor per batch, which costs far less than one data object per image.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Tensor]:
        """Sample -> `{'inputs': tensor, 'mask': tensor}`."""
        image = results['img']
        packed = {'inputs': image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))}
        if 'mask' in results:
            packed['mask'] = torch.from_numpy(results['mask'])
        return packed

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
