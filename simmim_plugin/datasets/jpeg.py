"""JPEGs that are decoded when it is known what is wanted of them, and no larger than that."""

import io
import math
import os

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

JPEG_SUFFIXES = ('.jpg', '.jpeg')
COLOURS = ('YCbCr', 'RGB', 'Gray')  # what libjpeg turns into RGB
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # more are taken for a decompression bomb, as Pillow does
ORIENTATION = 0x0112  # EXIF tag
APP1, SCAN = 0xE1, 0xDA  # markers: EXIF or XMP data; the pixels


class PendingJPEG:
    """A JPEG that has been read and not been decoded.

    Args:
        data: The file's bytes.
        path: Where they are from.
        size: Height and width in pixels.
    """

    def __init__(self, data: bytes, path: str, size: tuple[int, int]) -> None:
        self.data, self.path, self.size = data, path, size

    def decode(self, least: tuple[int, int]) -> Tensor:
        """Decode it, scaled down while it is decoded where it can be: by 2 or more, in the steps that libjpeg has.

        Args:
            least: Height and width in pixels that the result must have, unless the image is smaller.

        Returns:
            (3, H, W) uint8, with the channels last in memory.

        Raises:
            ValueError: The data are damaged.
        """
        shrink = 2 * least[0] <= self.size[0] and 2 * least[1] <= self.size[1]
        limits = dict(min_height=least[0], min_width=least[1], min_factor=2.0) if shrink else {}
        return torch.from_numpy(simplejpeg.decode_jpeg(self.data, fastupsample=True, **limits).transpose(2, 0, 1))


def pending_jpeg(path: str | os.PathLike[str], data: bytes | None = None) -> PendingJPEG | None:
    """Read a JPEG without decoding it.

    Args:
        path: The file.
        data: Its content, if that has been read.

    Returns:
        None where there is more to do than decoding (turning by the EXIF tag, CMYK), and for what is no good JPEG or
        larger than `MAX_PIXELS`.
    """
    if not os.fspath(path).lower().endswith(JPEG_SUFFIXES):
        return None
    if data is None:
        data = _read(path)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # whatever it is, `read_image` reads it or says what is wrong
        return None
    if _may_be_turned(data) and not _upright(data):
        return None
    if colours not in COLOURS or height * width > MAX_PIXELS:
        return None
    return PendingJPEG(data, os.fspath(path), (height, width))


def _read(path: str | os.PathLike[str]) -> bytes:
    """The content of a file in few system calls: half of the time of `open(path, 'rb').read()`."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):  # some file systems give less at a time
            data += more
    finally:
        os.close(file)
    return data


def _may_be_turned(data: bytes) -> bool:
    """Whether a segment before the pixels could say so, in EXIF or XMP."""
    at, last = 2, len(data) - 4
    while at <= last and data[at] == 0xFF and (marker := data[at + 1]) != SCAN:
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == APP1 and (data.startswith(b'Exif', at + 4) or data.find(b'Orientation', at, end) >= 0):
            return True
        at = end
    return False


def _upright(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(ORIENTATION, 1) == 1


def least_size(size: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image can be decoded at, so that a crop of it still has the target's pixels.

    Args:
        size: Height and width of the image.
        crop: Of the crop, in the image's pixels.
        target: What the crop is resized to.
    """
    return math.ceil(target[0] * size[0] / crop[0]), math.ceil(target[1] * size[1] / crop[1])
