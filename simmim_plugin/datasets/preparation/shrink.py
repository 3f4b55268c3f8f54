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
from simmim_plugin.datasets.images import (
    ARRAY_SUFFIXES,
    MODES,
    PHOTO_SUFFIXES,
    check_photo,
    check_size,
    convert_mode,
    has_many_bits,
    length_of,
    read_tiff,
    reason_of,
)
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.files import MAX_BYTES, open_regular, read_json

SETTINGS = 'prepare.json'
UNREADABLE = 'unreadable.txt'
CHUNK = 512  # images that the threads get at a time


@dataclass(frozen=True)
class Settings:
    """Settings of the small copies.

    Args:
        short_side: Shorter side in pixels of copies of larger photos; smaller photos are not enlarged.
        quality: JPEG quality, 1 to 95.

    Raises:
        ValueError: An argument is out of range.
    """

    short_side: int = 288
    quality: int = 90

    def __post_init__(self) -> None:
        whole('short_side', self.short_side, 1, hint='288 suits crops of 224 px')
        whole('quality', self.quality, 1, 95, '90 is usual')


def prepare_folder(
    source: str, target: str, settings: Settings | None = None, workers: int = 2, max_bytes: int = MAX_BYTES
) -> Counter[str]:
    """Write small copies of all images of a folder, in the same subfolders; skip copies that exist.

    8-bit photos become JPEGs, rotated upright by their EXIF tag, RGB or grey; .jpg is appended to other file endings
    (`a/b.png` -> `a/b.png.jpg`). Upright JPEGs that are small enough, and images that JPEG cannot represent (16 bits,
    TIFF, .npy), are decoded as a check and copied unchanged. Every written JPEG is decoded again before it gets its
    name.

    Args:
        source: Searched recursively, like `ImageFolder`.
        target: Created if it does not exist. `unreadable.txt` in it lists unreadable images, with reasons.
        settings: See `Settings`.
        workers: Number of threads.
        max_bytes: See `read_image`.

    Returns:
        Numbers of images that were 'shrunk', 'copied', 'done before' and 'unreadable', and the total 'bytes before' and
        'bytes after'.

    Raises:
        ValueError: `source` holds no image, two images would get the same name, `target` is inside `source` or holds
            images with other settings, or an argument is out of range.
        OSError: `target` cannot be written, such as on a full disk.
    """
    settings = settings or Settings()
    whole('workers', workers, 1, hint='the number of threads')
    whole('max_bytes', max_bytes, 1)
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
        return _prepare(Path(path), Path(target, name), settings, max_bytes)

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


def shrink(path: Path, settings: Settings, max_bytes: int) -> bytes | None:
    """Encode a photo as a small JPEG.

    Args:
        path: A file that PIL reads.
        settings: See `Settings`.
        max_bytes: See `read_image`.

    Returns:
        The bytes of the JPEG; None if the file should be copied unchanged.

    Raises:
        Exception: Of the decoder, for a damaged file.
    """
    length = os.path.getsize(path)
    with open(path, 'rb', opener=open_regular) as source, Image.open(source) as opened:
        image: Image.Image = opened
        check_photo(image, length, max_bytes)
        if has_many_bits(image):
            image.load()
            return None
        scale = settings.short_side / min(image.size)
        upright = image.getexif().get(0x0112, 1) == 1
        if scale >= 1 and upright and image.format == 'JPEG' and image.mode in MODES.values():
            image.load()
            return None
        if scale < 1:  # decode a JPEG at 1/2, 1/4 ..., but not below twice the target size
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


def check_values(path: Path, max_bytes: int) -> None:
    """Decode a TIFF or .npy file, to check that it is intact.

    Raises:
        Exception: Of the decoder, for a damaged file.
    """
    with open(path, 'rb', opener=open_regular) as source:
        length = length_of(source)
        if path.name.lower().endswith(ARRAY_SUFFIXES):
            check_size(length, max_bytes)
            np.load(source, allow_pickle=False)
        elif read_tiff(source, max_bytes) is None:
            with Image.open(source) as image:
                check_photo(image, length, max_bytes)
                image.load()


def _prepare(path: Path, copy: Path, settings: Settings, max_bytes: int) -> tuple[str, int, int, str]:
    """Prepare one image: what was done, bytes before and after, and the reason if it is unreadable."""
    jpeg = copy.with_name(_jpeg_name(copy.name))
    try:
        before = path.stat().st_size
        for there in (copy, jpeg):
            if there.is_file():
                return 'done before', before, there.stat().st_size, ''
        content = None
        if path.name.lower().endswith(PHOTO_SUFFIXES):
            content = shrink(path, settings, max_bytes)
        else:
            check_values(path, max_bytes)
    # Decoders raise exceptions of many types for damaged files; these are listed with the reason.
    except Exception as error:  # noqa: BLE001
        return 'unreadable', 0, 0, f'{path}: {reason_of(error)}'
    target = copy if content is None else jpeg
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')  # hidden files are not listed as images
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
        there = read_json(file)
        if there != here:
            raise ValueError(f'{target} was made with {there}, not {here}; choose another folder, or remove it')
    elif any(target.iterdir()):
        raise ValueError(f'{target} is not empty and has no {SETTINGS}; choose another folder')
    else:
        file.write_text(json.dumps(here), encoding='utf-8')
