"""Read image files as (C, H, W) tensors: photos, TIFF and .npy arrays."""

import io
import logging
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
import torch
from mmengine.logging import print_log
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simmim_plugin.utils.files import MAX_BYTES, PIXELS_PER_BYTE, open_regular, printable

ARRAY_SUFFIXES = ('.npy',)
TIFF_SUFFIXES = ('.tif', '.tiff')
PHOTO_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm', '.pgm', '.gif')
SUFFIXES = PHOTO_SUFFIXES + TIFF_SUFFIXES + ARRAY_SUFFIXES
DTYPES = ('uint8', 'float32')
RESULT_BYTES = {'uint8': 1, 'float32': 4}
Source = str | os.PathLike[str] | BinaryIO
MODES = {1: 'L', 3: 'RGB'}  # PIL's names, by number of channels
FEW_LEVELS = 64  # of 256; reached by values of less than 14 of 16 bits
_WARNED_OF: list[str] = []  # the first image that lost most of its levels


class ImageReadError(ValueError):
    """A file cannot be read as an image with the requested channels and dtype. The message is 'path: reason'."""


def read_image(
    path: str | os.PathLike[str],
    channels: int = 3,
    dtype: str = 'uint8',
    data: bytes | None = None,
    max_bytes: int = MAX_BYTES,
    nodata: float | None = None,
) -> Tensor:
    """Read a photo, a TIFF or a .npy array.

    Photos (everything that PIL reads) are rotated upright by their EXIF tag and converted to `channels`: for 3, grey is
    repeated, CMYK, palettes and YCbCr become RGB, alpha is dropped; for 1, colours become luma. TIFF and .npy hold
    (H, W), (H, W, C) or (C, H, W). For `channels=3`, a single channel is repeated, and a fourth one (alpha) dropped.

    Args:
        path: The file.
        channels: Channels of the result.
        dtype: 'uint8': 8-bit values; 16-bit ones are divided by 257, wider and floating-point files are refused.
            'float32': the values as stored; NaN and infinity are refused. (PIL reads only the upper 8 bits of 16-bit
            PNGs with several channels: store such data as TIFF or .npy.)
        data: The content of the file, if it was read before; `path` then only names it.
        max_bytes: Largest size of the decoded array, in bytes, as stored and as returned. For photos, Pillow's own
            limit (`Image.MAX_IMAGE_PIXELS`) holds as well.
        nodata: Value that stands for missing data, such as -9999 or NaN; None: that in the file's GDAL_NODATA tag
            (GeoTIFF), if it has one. Missing values are filled with the mean of the others of their channel.

    Returns:
        (channels, H, W), uint8 or float32.

    Raises:
        ImageReadError: The file is missing, damaged, no regular file or too large, is not such an image, or one of its
            channels has no value.
    """
    return read_with_missing(path, channels, dtype, data, max_bytes, nodata)[0]


def read_with_missing(
    path: str | os.PathLike[str],
    channels: int = 3,
    dtype: str = 'uint8',
    data: bytes | None = None,
    max_bytes: int = MAX_BYTES,
    nodata: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`read_image`, and where its values were missing, (channels, H, W) bool; None if nowhere."""
    suffix = Path(path).suffix.lower()
    try:
        with open(path, 'rb', opener=open_regular) if data is None else io.BytesIO(data) as source:
            if suffix in ARRAY_SUFFIXES:
                check_size(length_of(source), max_bytes)  # not compressed, so no array is larger
                array = _channels_first(np.load(source, allow_pickle=False), channels)
            elif suffix in TIFF_SUFFIXES and (found := read_tiff(source, max_bytes)) is not None:
                array = _channels_first(found[0], channels)
                nodata = found[1] if nodata is None else nodata
            else:
                array = _read_photo(source, channels, max_bytes)
        array = _fit_channels(array, channels)
        check_size(array.size * RESULT_BYTES[dtype], max_bytes)
        return _fitted(array, dtype, printable(path), nodata)
    # Decoders raise exceptions of many types for damaged files; all become one type that names the file.
    except Exception as error:
        raise ImageReadError(f'{printable(path)}: {reason_of(error)}') from error


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, from the exception of a decoder."""
    if isinstance(error, UnidentifiedImageError):
        return 'cannot identify image file'  # PIL's message would name the Python object
    if isinstance(error, IsADirectoryError):
        return 'a folder; give image files'
    if isinstance(error, FileNotFoundError):
        return f'no such file (from {os.getcwd()})'
    return str(error) or type(error).__name__


def check_size(size: int, max_bytes: int) -> None:
    """Raise a ValueError if an image of `size` bytes is larger than allowed."""
    if size > max_bytes:
        raise ValueError(f'it takes {size:,} bytes, more than max_bytes={max_bytes:,} of LoadImage; cut it into '
                         'smaller images, or raise that')  # fmt: skip


def length_of(source: BinaryIO) -> int:
    """Bytes of an open file, which is then at its start."""
    length = source.seek(0, os.SEEK_END)
    source.seek(0)
    return length


def _filled(array: np.ndarray, nodata: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Fill missing values with the mean of the others of their channel; where they were, or None."""
    if nodata is None:
        return array, None
    value = array.dtype.type(nodata) if array.dtype.kind == 'f' else nodata  # as rounded in the file
    missing = np.isnan(array) if np.isnan(nodata) else array == value
    if not missing.any():
        return array, None
    array = array.copy()
    for number, (channel, gap) in enumerate(zip(array, missing)):
        if gap.all():
            raise ValueError(f'channel {number} has no value but nodata={nodata:g}')
        mean = channel[~gap].mean(dtype=np.float64)
        channel[gap] = mean if array.dtype.kind == 'f' else round(mean)
    return array, missing


def convert_image(
    image: np.ndarray | Image.Image, channels: int = 3, dtype: str = 'uint8', order: str = 'bgr'
) -> Tensor:
    """An image that was read elsewhere, with the channels and dtype that `read_image` gives.

    Args:
        image: A PIL image, or an array: (H, W), (H, W, C) or (C, H, W).
        channels: Channels of the result.
        dtype: See `read_image`.
        order: Order of the first three of an array's three or four channels: 'bgr' (OpenCV, MMCV) or 'rgb'.

    Returns:
        (channels, H, W), uint8 or float32.

    Raises:
        ImageReadError: The image does not have these channels, or has other values.
    """
    try:
        if not isinstance(image, Image.Image):
            array = _channels_first(np.asarray(image), channels)
            if order == 'bgr' and channels in MODES and array.shape[0] in (3, 4):
                array = array[[2, 1, 0, *range(3, len(array))]]
            if channels != 1 or len(array) not in (3, 4) or array.dtype != np.uint8:
                return _fitted(_fit_channels(array, channels), dtype, 'img')[0]
            image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))  # whose luma is that of files
        return _fitted(_fit_channels(_photo_values(image, channels), channels), dtype, 'img')[0]
    except ValueError as error:
        raise ImageReadError(f'the image given as img: {error}') from error


def _fitted(array: np.ndarray, dtype: str, name: str, nodata: float | None = None) -> tuple[Tensor, Tensor | None]:
    array, missing = _filled(array, nodata)
    pixels = _as_dtype(array, dtype)
    if pixels.itemsize < array.itemsize and pixels.max() < FEW_LEVELS:
        _warn_of_lost_values(name, int(array.max()))
    return torch.from_numpy(pixels), None if missing is None else torch.from_numpy(missing)


def _warn_of_lost_values(path: str, largest: int) -> None:
    """Warn, once per process, that 8 bits keep few levels of a 16-bit image."""
    if not _WARNED_OF:
        _WARNED_OF.append(path)
        print_log(
            f'{path}: its values reach {largest} of 65535, of which 8 bits keep {largest // 257 + 1} levels; to read '
            "values as stored, set dtype='float32' of LoadImage, and mean and std by `simmim statistics`",
            'current',
            logging.WARNING,
        )


def read_tiff(source: Source, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, float | None] | None:
    """Values of a TIFF as stored, and its nodata value; None if its colours need a conversion (CMYK, palette ...)."""
    with tifffile.TiffFile(source) as file:
        first, images = file.pages.first, file.series[0]
        check_size(math.prod(images.shape) * images.dtype.itemsize, max_bytes)
        if not any(first.databytecounts):
            raise ValueError('it holds no pixels')
        if first.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
            tag = first.tags.get('GDAL_NODATA')
            return images.asarray(), None if tag is None else float(tag.value)
    return None


def _read_photo(source: BinaryIO, channels: int, max_bytes: int) -> np.ndarray:
    """Read a file by PIL: (C, H, W)."""
    length = length_of(source)
    with Image.open(source) as opened:
        image: Image.Image = opened
        check_photo(image, length, max_bytes, channels)
        ImageOps.exif_transpose(image, in_place=True)
        return _photo_values(image, channels)


def check_photo(image: Image.Image, length: int, max_bytes: int, channels: int = 1) -> None:
    """Raise a ValueError if a photo of so many bytes, not decoded yet, is too large, or larger than it can be."""
    pixels = image.width * image.height
    check_size(pixels * max(len(image.getbands()) * (4 if has_many_bits(image) else 1), channels), max_bytes)
    if image.format == 'JPEG' and pixels > PIXELS_PER_BYTE * length:
        raise ValueError(f'{length:,} bytes cannot hold the {image.width} x {image.height} px that it claims')


def _photo_values(image: Image.Image, channels: int) -> np.ndarray:
    """Values of a photo, (C, H, W); converted to grey or RGB where that has `channels`."""
    if channels in MODES and not has_many_bits(image):
        image = convert_mode(image, MODES[channels])
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def has_many_bits(image: Image.Image) -> bool:
    """Whether a photo has 16 or 32 bits, always in one channel."""
    return image.mode.startswith('I') or image.mode == 'F'


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a photo to another PIL mode; alpha is dropped."""
    if image.mode == 'P' and 'transparency' in image.info:  # PIL converts it only by way of RGBA
        image = image.convert('RGBA')
    return image.convert(mode)


def _channels_first(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W); the channel axis has size `channels`, else it is the shorter one."""
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ValueError(f'an array of shape {array.shape} is not an image; expected (H, W), (H, W, C) or (C, H, W)')
    first, last = array.shape[0], array.shape[2]
    channels_last = last == channels if channels in (first, last) and first != last else last <= first
    return array.transpose(2, 0, 1) if channels_last else array


def _fit_channels(array: np.ndarray, channels: int) -> np.ndarray:
    if 0 in array.shape:
        raise ValueError(f'an image of {array.shape[1]} x {array.shape[2]} px is empty')
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
        values = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f'{np.count_nonzero(~np.isfinite(values))} values are NaN or infinite; fill them first')
        return values
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind == 'b':
        array = array.astype(np.uint8) * 255
    elif (kind, bits) == ('u', 16) or (
        (kind, bits) == ('i', 32) and _fits_16_bits(array)
    ):  # PIL reads some 16-bit files as 32-bit
        array = np.round(array / 257)
    elif (kind, bits) != ('u', 8):
        raise ValueError(f"it holds {array.dtype} values, which have no fixed range; set dtype='float32' in LoadImage")
    return np.array(array, dtype=np.uint8, order='C')


def _fits_16_bits(array: np.ndarray) -> bool:
    return bool(array.min() >= 0 and array.max() <= 65535)


def photo_rows(image: Tensor) -> np.ndarray | None:
    """View a (C, H, W) image as (H, W, 3) for OpenCV; None unless it is uint8 and contiguous in that order."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.stride(0) != 1:
        return None
    rows = image.numpy().transpose(1, 2, 0)
    return rows if rows.flags.c_contiguous else None
