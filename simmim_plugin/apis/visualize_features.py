"""Visualise a pretrained backbone: patch features as colours, similarity and attention of one patch."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from simmim_plugin.checkpoints.loading import load_pretrained
from simmim_plugin.datasets.images import read_image
from simmim_plugin.models.interface import checked, features_after, layer_shapes, shows_attention
from simmim_plugin.models.layers.architecture import block_numbers
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import reading_arguments
from simmim_plugin.utils.hardware import checked_device
from simmim_plugin.visualization.features import feature_sheet
from simmim_plugin.visualization.sheets import check_picture_name

MAX_NAME = 40  # characters of a file name in a caption
Point = tuple[int, int]  # x and y in pixels
PointChooser = Callable[[Tensor, str], Point]


def input_size(image: Sequence[int], size: int | Sequence[int] | None, backbone: Any) -> tuple[int, int]:
    """Height and width in pixels of the backbone's input for an image: multiples of its patch size.

    Args:
        image: Height and width of the image.
        size: Shorter side, the other follows the image's proportions; or height and width. None: the shorter side of
            the backbone's `img_size`.
        backbone: The model.

    Raises:
        ValueError: A side is shorter than one patch, or `size` is not one or two numbers.
    """
    sides = [min(backbone.img_size)] if size is None else list(size) if isinstance(size, Sequence) else [size]
    if len(sides) not in (1, 2):
        raise ValueError(f'--size={size!r} must be the shorter side, or height and width')
    patch = backbone.patch_size
    for side in sides:
        whole('--size', side, patch, hint=f'a patch has {patch} x {patch} px')
    height, width = (sides[0] * side / min(image) for side in image) if len(sides) == 1 else sides
    return round(height / patch) * patch, round(width / patch) * patch


@torch.no_grad()
def draw_features(
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    point: Point | PointChooser | None = None,
    blocks: Sequence[int] | str | None = None,
    size: int | Sequence[int] | None = None,
    device: str = 'cpu',
) -> None:
    """Draw features, similarity and attention: one row per image and block (see `feature_sheet`).

    Models that are not a `SimMIMViT` are drawn without attention; if they have no blocks, stages are drawn.

    The checkpoint defines how images are read; they are resized without cropping (bilinear), see `input_size`. A model
    with relative position bias needs memory for 2 x heads x patches x patches numbers, much at large sizes.

    Args:
        checkpoint: Checkpoint of a pretraining.
        images: Image files.
        out: The picture to write.
        point: x and y, in pixels of the image as stored (upright), of the patch whose similarity and attention are
            shown; or a function of the image (C, H, W) and its name that returns them. None: the centre.
        blocks: Numbers of blocks, from 1, or 'all'. None: four, evenly spaced, with the last.
        size: See `input_size`.
        device: Device of the model.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: A file is not an image or checkpoint of this kind, or an argument is out of range.
    """
    check_picture_name(out)
    model, pipeline = load_pretrained(checkpoint, checked_device(device))
    backbone = checked(model.backbone, f'checkpoint {os.fspath(checkpoint)!r}: its backbone')
    count = len(layer_shapes(backbone))
    numbers = block_numbers(blocks, count)
    reading = reading_arguments(pipeline)
    stored = [read_image(path, **reading) for path in images]
    sizes = [input_size(image.shape[1:], size, backbone) for image in stored]
    points = [_checked_point(point, image, os.fspath(path)) for image, path in zip(stored, images)]
    sheets = []
    for path, image, (height, width), (x, y) in zip(images, stored, sizes, points):
        seen = TF.resize(image, [height, width], antialias=True)
        h, w = height // backbone.patch_size, width // backbone.patch_size
        query = (int((y + 0.5) * h / image.shape[1]), int((x + 0.5) * w / image.shape[2]))
        inputs = model.data_preprocessor(dict(inputs=seen[None]))['inputs']
        try:
            options = dict(attention_of=query) if shows_attention(backbone) else {}
            found = features_after(backbone, inputs, [n - 1 for n in numbers], **options)
        except RuntimeError as error:
            if 'memory' not in str(error):
                raise
            raise ValueError(
                f'--size: the {h} x {w} patches of {os.fspath(path)} at {height} x {width} px need more memory than '
                'is available; use a smaller --size'
            ) from error
        maps = [(patches[0].cpu(), more[0][0].cpu() if more else None) for patches, _, *more in found]
        names = [f'{_short_name(path)}, block {number} of {count}' for number in numbers]
        sheets.append(feature_sheet(seen, maps, query, names))
    widest = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 0), (0, widest - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(out)


def _checked_point(point: Point | PointChooser | None, image: Tensor, path: str) -> Point:
    height, width = image.shape[1:]
    if point is None:
        return width // 2, height // 2
    x, y = point(image, os.path.basename(path)) if callable(point) else point
    where = f'{path} has {width} x {height} px (width x height)'
    return whole('x of --point', x, 0, width - 1, where), whole('y of --point', y, 0, height - 1, where)


def _short_name(path: str | os.PathLike[str]) -> str:
    name = os.path.basename(path)
    return name if len(name) <= MAX_NAME else f'{name[: MAX_NAME // 2]}...{name[-MAX_NAME // 2 + 3 :]}'
