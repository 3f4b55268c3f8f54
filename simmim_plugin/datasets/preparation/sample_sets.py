"""Write small data sets from images in Python packages, to try everything without a download."""

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits
from tqdm import tqdm

from simmim_plugin.datasets.image_folder import ImageFolder
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import choice, whole

SHAPES = ('disc', 'square', 'triangle')
COLOURS = ((214, 69, 65), (65, 131, 215), (244, 208, 63))
DIGIT_PX = 64


def make_photos(out: Path, rng: np.random.Generator) -> str:
    """384 crops of 160 px of the photos in scikit-image and scikit-learn: images without labels."""
    for i, crop in enumerate(_crops(tqdm(range(384), unit='image', leave=False), 160, rng)):
        _save(crop, out / f'{i:03}.jpg')
    return '384 photos without labels'


def make_digits(out: Path, rng: np.random.Generator) -> str:
    """Handwritten digits (scikit-learn's, 8 px, drawn at 64 px): 80 of each in train/<digit>/, 40 in val/<digit>/."""
    digits = load_digits()
    for label in tqdm(range(10), unit='class', leave=False):
        for i, index in enumerate(rng.permutation(np.flatnonzero(digits.target == label))[:120]):
            image = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
            part = 'train' if i < 80 else 'val'
            _save(image.resize((DIGIT_PX, DIGIT_PX), Image.Resampling.BICUBIC), out / part / str(label) / f'{i:03}.png')
    return 'train/ and val/ with ten classes'


def make_shapes(out: Path, rng: np.random.Generator) -> str:
    """Discs, squares and triangles on photos of 256 px, 40 to train on and 12 to evaluate.

    COCO annotations with outlines, masks as PNGs (0 is the background), and classes.txt, as the custom-data configs in
    configs/detection and configs/segmentation expect.
    """
    progress = tqdm(total=52, unit='image', leave=False)
    for part, count in (('train', 40), ('valid', 12)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, picture in enumerate(_crops(range(count), 256, rng)):
            mask = Image.new('L', picture.size)
            for _ in range(rng.integers(2, 5)):
                kind = int(rng.integers(len(SHAPES)))
                outline = _outline(kind, rng.uniform(24, 60), rng.uniform(60, 196, 2))
                for canvas, fill in ((picture, COLOURS[kind]), (mask, kind + 1)):
                    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline], fill=fill)
                (left, top), (right, bottom) = outline.min(0), outline.max(0)
                annotations.append(
                    dict(
                        id=len(annotations) + 1, image_id=i + 1, category_id=kind + 1, iscrowd=0,
                        bbox=[left, top, right - left, bottom - top], segmentation=[outline.ravel().tolist()],
                        area=_area(outline),
                    )
                )  # fmt: skip
            name = f'{i:03}'
            _save(picture, out / 'images' / part / f'{name}.jpg')
            _save(mask, out / 'masks' / part / f'{name}.png')
            images.append(dict(id=i + 1, file_name=f'{name}.jpg', width=256, height=256))
            progress.update()
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(SHAPES)]
        path = out / 'annotations' / f'{part}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    progress.close()
    (out / 'classes.txt').write_text('\n'.join(('background', *SHAPES)) + '\n')
    return 'annotations/, images/, masks/ and classes.txt, with three classes'


def make_scans(out: Path, rng: np.random.Generator) -> str:
    """64 grey 16-bit TIFFs, 160 px, values from 0 to 4,095 like a scanner's: photos of a retina and of tissue."""
    photos = [path for path in _photos() if path.stem in ('retina', 'ihc')]
    for i, crop in enumerate(_crops(tqdm(range(64), unit='image', leave=False), 160, rng, photos)):
        values = np.asarray(crop.convert('L'), np.float32) * 15 + rng.normal(0, 20, (160, 160))
        out.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(out / f'{i:03}.tif', values.clip(0, 4095).astype(np.uint16))
    return '64 scans of one channel and 16 bits'


KINDS: dict[str, Callable[[Path, np.random.Generator], str]] = {
    'photos': make_photos, 'digits': make_digits, 'shapes': make_shapes, 'scans': make_scans
}  # fmt: skip


def make(kind: str, out: Path, seed: int = 0) -> str:
    """Write a small data set.

    Args:
        kind: One of `KINDS`.
        out: A folder that does not exist yet, or is empty.
        seed: Seed of the crops.

    Returns:
        A description of what was written.

    Raises:
        ValueError: The folder is not empty, or an argument is unknown or out of range.
        ModuleNotFoundError: A package with photos is not installed; the message names the command.
    """
    choice('kind', kind, KINDS)
    whole('seed', seed, 0)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'OUT {str(out)!r} already exists and is not empty; give a new folder')
    return KINDS[kind](out, np.random.default_rng(seed))


def _photos() -> list[Path]:
    return [Path(data['img_path']) for data in PackagePhotos().load_data_list()]


def _crops(
    indices: Iterable[int], size: int, rng: np.random.Generator, photos: list[Path] | None = None
) -> Iterator[Image.Image]:
    """Random crops, cycling through the photos."""
    opened = [Image.open(path).convert('RGB') for path in photos or _photos()]
    for i in indices:
        photo = opened[i % len(opened)]
        side = int(rng.uniform(0.4, 0.9) * min(photo.size))
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        yield photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def _outline(kind: int, size: float, centre: np.ndarray) -> np.ndarray:
    """Corners, (n, 2); a disc has 24."""
    corners = (24, 4, 3)[kind]
    angles = 2 * np.pi * (np.arange(corners) + 0.5 * (kind == 1)) / corners
    return centre + size * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _area(outline: np.ndarray) -> float:
    """Area by the shoelace formula."""
    x, y = outline.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@DATASETS.register_module()
class PackagePhotos(ImageFolder):
    """The photos in the scikit-image and scikit-learn packages, as a data set without a download.

    Args:
        pipeline: See `ImageFolder`.
        kwargs: See `ImageFolder`.

    Raises:
        ModuleNotFoundError: A package is not installed; the message names the command.
    """

    # Colour photos with a stated licence: public domain, CC0, or CC BY 2.0 (scikit-learn's, by danielbuechele and
    # vultilion). Drawings, text and textures are left out.
    PHOTOS = {
        'skimage': ('data', ('astronaut.png', 'chelsea.png', 'coffee.png', 'hubble_deep_field.jpg', 'ihc.png',
                             'retina.jpg', 'rocket.jpg')),
        'sklearn': ('datasets/images', ('china.jpg', 'flower.jpg')),
    }  # fmt: skip

    unused = (*ImageFolder.unused, 'ann_file', 'data_prefix')

    def __init__(self, pipeline: Sequence[Any] = (), **kwargs: Any) -> None:
        super().__init__(data_root='', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the photos."""
        paths = []
        for package, (folder, names) in self.PHOTOS.items():
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(
                    f"PackagePhotos needs {package}: pip install 'simmim_plugin[photos]'", name=package
                )
            paths += [Path(spec.origin).parent / folder / name for name in names]
        return [{'img_path': str(path)} for path in paths]
