"""Shrink a folder of images once, so that each epoch decodes small files."""

import io
import json
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.datasets.images import ARRAY_SUFFIXES, MODES, PHOTO_SUFFIXES, convert_mode, has_many_bits, read_tiff

SETTINGS = 'prepare.json'
UNREADABLE = 'unreadable.txt'
CHUNK = 512  # images handed to the threads at a time


@dataclass(frozen=True)
class Settings:
    """What becomes of a photo.

    Args:
        short_side: Shorter side in pixels of larger photos; smaller ones are not enlarged.
        quality: Of the JPEG files, 1 to 95.

    Raises:
        ValueError: An argument is out of range.
    """

    short_side: int = 288
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f'short_side={self.short_side} must be positive; 288 serves crops of 224 px')
        if not 1 <= self.quality <= 95:
            raise ValueError(f'quality={self.quality} is outside 1 ... 95; 90 is usual')


def prepare_folder(source: str, target: str, settings: Settings | None = None, workers: int = 2) -> Counter[str]:
    """Write small copies of all images of a folder, in the same folders; what is there already is not done again.

    Photos of 8 bits become JPEGs, upright by their EXIF tag, RGB or grey; where the name has another ending, .jpg is
    added (`a/b.png` -> `a/b.png.jpg`). An upright JPEG that is small enough, and images that a JPEG cannot hold (16
    bits, TIFF, .npy), are decoded once and copied byte by byte. Every JPEG is decoded again before it gets its name.

    Args:
        source: Searched recursively, as `ImageFolder` does.
        target: Made if it does not exist. `unreadable.txt` in it lists what could not be read, with reasons.
        settings: See `Settings`.
        workers: Threads.

    Returns:
        Numbers of images by what was done: 'shrunk', 'copied', 'done before', 'unreadable'; and 'bytes before' and
        'bytes after' of all that are there.

    Raises:
        ValueError: No image in `source`, two of them would get one name, `target` lies in `source`, or holds images of
            other settings.
        OSError: `target` cannot be written, such as on a full disk.
    """
    settings = settings or Settings()
    if workers < 1:
        raise ValueError(f'workers={workers} must be positive')
    paths = list_images(source)
    if not paths:
        raise ValueError(f'source={source!r} holds no image (from {os.getcwd()})')
    names = [os.path.relpath(path, source) for path in paths]
    (most, count), *_ = Counter(_jpeg_name(name) for name in names).most_common(1)
    if count > 1:
        raise ValueError(f'{count} images of source={source!r} would become {most}; rename all but one')
    _check_target(Path(source), Path(target), settings)
    counts: Counter[str] = Counter()
    unreadable = []

    def prepare(path: str, name: str) -> tuple[str, int, int, str]:
        return _prepare(Path(path), Path(target, name), settings)

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), unit='image', smoothing=0.05, file=sys.stderr) as progress,
    ):
        for start in range(0, len(paths), CHUNK):
            part = slice(start, start + CHUNK)
            for what, before, after, reason in pool.map(prepare, paths[part], names[part]):
                counts.update({what: 1, 'bytes before': before, 'bytes after': after})
                if reason:
                    unreadable.append(reason)
                    progress.write(f'unreadable: {reason}', file=sys.stderr)
                progress.update()
    listed = Path(target, UNREADABLE)
    listed.unlink(missing_ok=True)
    if unreadable:
        listed.write_text('\n'.join(unreadable) + '\n', encoding='utf-8', errors='backslashreplace')
    return counts


def shrink(path: Path, settings: Settings) -> bytes | None:
    """A photo as a small JPEG.

    Args:
        path: A file that PIL reads.
        settings: See `Settings`.

    Returns:
        The bytes of the file; None where the file should be copied as it is.

    Raises:
        Exception: What the decoder raises for a damaged file.
    """
    with Image.open(path) as opened:
        image: Image.Image = opened
        if has_many_bits(image):
            image.load()
            return None
        scale = settings.short_side / min(image.size)
        upright = image.getexif().get(0x0112, 1) == 1
        if scale >= 1 and upright and image.format == 'JPEG' and image.mode in MODES.values():
            image.load()
            return None
        if scale < 1:  # a JPEG is decoded at a half, a quarter ..., but not below twice the size that is wanted
            image.draft(image.mode, (round(2 * scale * image.width), round(2 * scale * image.height)))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in MODES.values():
            image = convert_mode(image, 'L' if image.mode in ('1', 'LA', 'La') else 'RGB')
        if scale < 1:
            scale = settings.short_side / min(image.size)
            width, height = (max(settings.short_side, round(scale * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)  # antialiased
        file = io.BytesIO()
        image.save(file, 'JPEG', quality=settings.quality)
    with Image.open(file) as written:
        written.load()
        if written.size != image.size:
            raise RuntimeError(f'{path}: written as {written.size}, not {image.size} px')
    return file.getvalue()


def check_values(path: Path) -> None:
    """Decode a TIFF or .npy file, which is copied as it is; its values are not judged.

    Raises:
        Exception: What the decoder raises for a damaged file.
    """
    if path.name.lower().endswith(ARRAY_SUFFIXES):
        np.load(path, allow_pickle=False)
    elif read_tiff(path) is None:
        with Image.open(path) as image:
            image.load()


def _prepare(path: Path, copy: Path, settings: Settings) -> tuple[str, int, int, str]:
    """One image: what was done, bytes before and after, and what is wrong with it."""
    jpeg = copy.with_name(_jpeg_name(copy.name))
    try:
        before = path.stat().st_size
        for there in (copy, jpeg):
            if there.is_file():
                return 'done before', before, there.stat().st_size, ''
        content = None
        if path.name.lower().endswith(PHOTO_SUFFIXES):
            content = shrink(path, settings)
        else:
            check_values(path)
    # As in `read_image`: decoders raise many types for a damaged file. It is listed with its reason.
    except Exception as error:  # noqa: BLE001
        return 'unreadable', 0, 0, f'{path}: {str(error) or type(error).__name__}'
    target = copy if content is None else jpeg
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')  # hidden from whoever lists images
    if content is None:
        shutil.copyfile(path, part)
    else:
        part.write_bytes(content)
    after = part.stat().st_size
    part.replace(target)
    return 'copied' if content is None else 'shrunk', before, after, ''


def _jpeg_name(name: str) -> str:
    return name if name.lower().endswith(('.jpg', '.jpeg')) else f'{name}.jpg'


def _check_target(source: Path, target: Path, settings: Settings) -> None:
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f'target={str(target)!r} lies in source={str(source)!r}; choose a folder outside')
    target.mkdir(parents=True, exist_ok=True)
    file = target / SETTINGS
    here = {'source': str(source.resolve()), **asdict(settings)}
    if file.is_file():
        there = json.loads(file.read_text(encoding='utf-8'))
        if there != here:
            raise ValueError(f'{target} was made with {there}, not {here}; choose another folder, or remove it')
    elif any(target.iterdir()):
        raise ValueError(f'{target} is not empty and has no {SETTINGS}; choose another folder')
    else:
        file.write_text(json.dumps(here), encoding='utf-8')
