"""What a pretrained backbone makes of an image: patch features as colours, similarity and attention of one patch."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from simmim_plugin.backbone import SimMIMViT
from simmim_plugin.blocks import Block
from simmim_plugin.checkpoint import load_pretrained
from simmim_plugin.loading import read_image
from simmim_plugin.reconstruct import reading_arguments
from simmim_plugin.visualization import PANEL_PX, check_picture_name, draw_table, enlarge, mark_patch, to_display
from simmim_plugin.windows import has_windows

COLUMNS = ('image and patch', 'PCA of features', 'similarity', 'attention, root scale')
LEAST_SIMILAR = 0.99  # a map in which all patches are alike shall look so
MAX_NAME = 40  # characters of a file's name in a caption
Point = tuple[int, int]  # x and y in pixels
PointChooser = Callable[[Tensor, str], Point]


class BlockMaps(NamedTuple):
    """What one block gives: `features` (h, w, D), and `attention` (heads, h, w) of the query patch to all patches."""

    features: Tensor
    attention: Tensor | None


@torch.no_grad()
def block_features(backbone: SimMIMViT, images: Tensor, query: tuple[int, int] | None = None) -> list[BlockMaps]:
    """Features after each block, and each block's attention from one patch, in one pass without a mask.

    Of the attention only the query's row is computed, so that memory is what the backbone needs anyway.

    Args:
        backbone: In evaluation mode.
        images: (1, C, H, W), normalised; H and W are multiples of the patch size.
        query: Row and column of the patch that attends; None: no attention.

    Returns:
        One entry per block, on the CPU. The last block's features went through the final norm, as the output does.
        Attention is softmax over all keys; the class token's share is left out, so it sums to less than 1.

    Raises:
        ValueError: `images` are not one image that the backbone takes, or `query` is outside the grid, or asked of
            attention inside windows.
    """
    if images.ndim != 4 or images.shape[0] != 1:
        raise ValueError(f'images of shape {tuple(images.shape)}: give one image, (1, C, H, W)')
    h, w = (side // backbone.patch_size for side in images.shape[2:])
    if query is not None and not (0 <= query[0] < h and 0 <= query[1] < w):
        raise ValueError(
            f'query={query} is outside the {h} x {w} patches; give row 0 ... {h - 1}, column 0 ... {w - 1}'
        )
    if query is not None and any(has_windows((h, w), size) for size in backbone.window_sizes):
        raise ValueError(
            f'query={query}: some blocks attend inside windows only, so that no token sees the whole image; build the '
            'backbone with window_size=0, or leave the query out'
        )
    maps: list[BlockMaps] = []

    def record(block: Block, args: tuple[Any, ...], output: Tensor) -> None:
        x, grid, shared = args[:3]
        attention = None
        if query is not None:
            token = 1 + query[0] * w + query[1]  # the class token comes first
            attention = block.attn.attention_of(block.norm1(x), grid, shared, token)[0, :, 1:]
            attention = attention.reshape(-1, h, w).cpu()
        features = backbone.norm(output) if block is backbone.blocks[-1] else output
        maps.append(BlockMaps(features[0, 1:].reshape(h, w, -1).cpu(), attention))

    hooks = [block.register_forward_hook(record) for block in backbone.blocks]
    try:
        backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def pca_rgb(features: Tensor) -> Tensor:
    """First three principal components of the features as red, green and blue.

    Each is stretched between its 1st and 99th percentile, and signed so that its largest weight is positive. A
    component in which the features do not differ is 0.5 everywhere.

    Args:
        features: (h, w, D), D at least 3.

    Returns:
        (h, w, 3) in [0, 1], float32.

    Raises:
        ValueError: Another shape.
    """
    if features.ndim != 3 or features.shape[2] < 3:
        raise ValueError(f'features of shape {tuple(features.shape)}: expected (h, w, D) with D of 3 or more')
    values = features.flatten(0, 1).double()  # (h*w, D)
    centred = values - values.mean(dim=0)
    weights = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)  # (D, 3), largest variance first
    largest = weights.gather(0, weights.abs().argmax(dim=0, keepdim=True))
    components = centred @ (weights * largest.sign())  # (h*w, 3)
    low, high = torch.quantile(components, torch.tensor([0.01, 0.99]).to(components), dim=0)
    flat = high - low <= 1e-5 * values.abs().max()  # rounding errors of float32, not to be blown up
    stretched = ((components - low) / (high - low).masked_fill(flat, 1)).clamp(0, 1)
    return stretched.masked_fill(flat, 0.5).float().reshape(*features.shape[:2], 3)


def similarity(features: Tensor, query: tuple[int, int]) -> Tensor:
    """Cosine similarity of each patch to the query patch: (h, w, D), (row, column) -> (h, w) in [-1, 1]."""
    return F.cosine_similarity(features, features[query], dim=-1).clamp(-1, 1)


def feature_sheet(image: Tensor, maps: Sequence[BlockMaps], query: tuple[int, int], names: Sequence[str]) -> np.ndarray:
    """One row per block: image with the query patch | PCA | similarity | attention, mean over the heads.

    Similarity is coloured from the map's least value, 0.99 at most (dark), to 1 (yellow); the square root of attention
    from 0 to its largest (a few patches often take much). Captions say these values. PCA colours are each row's own.

    Args:
        image: (C, H, W) in the units of the stored values, as the model sees it.
        maps: One per row, with attention.
        query: Row and column of the patch.
        names: One per row, first words of its caption.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: `maps` are without attention.
    """
    scale = math.ceil(PANEL_PX / image.shape[2])
    patch = scale * image.shape[1] // maps[0].features.shape[0]  # side of a patch in the sheet
    shown = to_display(image[None].float(), image[None].float())[0].permute(1, 2, 0)  # (H, W, 3)
    photo = mark_patch(enlarge(shown.numpy(), scale), query, patch)
    rows, captions = [], []
    for (features, heads), name in zip(maps, names):
        if heads is None:
            raise ValueError('maps without attention; call block_features with query=(row, column)')
        near, attention = similarity(features, query), heads.mean(dim=0)
        low, most = min(float(near.min()), LEAST_SIMILAR), float(attention.max())
        near = (near - low) / (1 - low)
        similar, attended = (
            mark_patch(enlarge(matplotlib.colormaps[colours](values.numpy())[..., :3], patch), query, patch)
            for colours, values in (('viridis', near), ('inferno', (attention / most).sqrt()))
        )
        rows.append(np.stack((photo, enlarge(pca_rgb(features).numpy(), patch), similar, attended)))
        captions.append(f'{name};  similarity {low:.2f} ... 1,  attention 0 ... {100 * most:.2g} %')
    return draw_table(np.stack(rows), COLUMNS, captions)


def input_size(image: Sequence[int], size: int | Sequence[int] | None, backbone: SimMIMViT) -> tuple[int, int]:
    """Height and width in pixels at which the backbone sees an image: multiples of its patch size.

    Args:
        image: Height and width of the image.
        size: Its shorter side, the other follows the image's proportions; or height and width. None: the shorter side
            of the backbone's `img_size`.
        backbone: The model.

    Raises:
        ValueError: A side is shorter than one patch, or `size` is not one or two numbers.
    """
    sides = [min(backbone.img_size)] if size is None else [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2):
        raise ValueError(f'--size takes the shorter side, or height and width, got {sides}')
    patch = backbone.patch_size
    if min(sides) < patch:
        words = ' '.join(map(str, sides))
        raise ValueError(f'--size {words} is less than a patch of {patch} x {patch} px; give {patch} px or more')
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

    How images are read is taken from the checkpoint; they are resized whole (bilinear), see `input_size`. A model with
    relative position bias needs memory for heads x patches x patches numbers, twice: large sizes are dear.

    Args:
        checkpoint: Written by a pretraining run.
        images: Files.
        out: The picture to write.
        point: x and y, in pixels of the image as stored (upright), of the patch whose similarity and attention are
            shown; or a function that gives them, of the image (C, H, W) and its name. None: the centre.
        blocks: Numbers of blocks, from 1; 'all'; None: four, spread evenly, with the last.
        size: See `input_size`.
        device: Where to run the model.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: A file is no image or checkpoint of this kind, or an argument is out of range.
    """
    check_picture_name(out)
    model, pipeline = load_pretrained(checkpoint, checked_device(device))
    backbone = checked_backbone(model, checkpoint)
    numbers = block_numbers(blocks, backbone.num_layers)
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
            maps = block_features(backbone, inputs, query)
        except RuntimeError as error:
            if 'memory' not in str(error):
                raise
            raise ValueError(
                f'--size: the {h} x {w} patches of {os.fspath(path)} at {height} x {width} px need more memory than '
                'there is; give a smaller --size'
            ) from error
        names = [f'{_short_name(path)}, block {number} of {backbone.num_layers}' for number in numbers]
        sheets.append(feature_sheet(seen, [maps[number - 1] for number in numbers], query, names))
    widest = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(s, ((0, 0), (0, widest - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(out)


def checked_backbone(model: Any, checkpoint: str | os.PathLike[str]) -> SimMIMViT:
    """The model's backbone; ValueError, naming the checkpoint, where it is of another kind."""
    if not isinstance(model.backbone, SimMIMViT):
        kind = type(model.backbone).__name__
        raise ValueError(f'checkpoint {os.fspath(checkpoint)!r} holds a {kind}, not a SimMIMViT')
    return model.backbone


def checked_device(device: str) -> str:
    """The name of a device; ValueError where it cannot be used."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'--device {device} cannot be used ({reason}); use cpu, or cuda on a machine with a GPU'
        ) from error
    return device


def block_arguments(words: Sequence[str] | None) -> Any:
    """`--blocks` of the command line as `draw_features` and `FeatureExtractor` take it."""
    if words is None:
        return None
    return 'all' if list(words) == ['all'] else [int(word) if word.isdecimal() else word for word in words]


def block_numbers(blocks: Sequence[int] | str | None, count: int) -> list[int]:
    """Rising numbers from 1."""
    if blocks == 'all':
        return list(range(1, count + 1))
    numbers = [math.ceil(count * i / 4) for i in (1, 2, 3, 4)] if blocks is None else blocks
    if not numbers or any(not isinstance(n, int) or not 1 <= n <= count for n in numbers):
        raise ValueError(f"blocks={numbers}: the model has blocks 1 ... {count}; give numbers of these, or 'all'")
    return sorted({int(n) for n in numbers})


def _checked_point(point: Point | PointChooser | None, image: Tensor, path: str) -> Point:
    height, width = image.shape[1:]
    if point is None:
        return width // 2, height // 2
    x, y = point(image, os.path.basename(path)) if callable(point) else point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f'--point {x} {y} is outside {path} of {width} x {height} px (width x height); give x of '
            f'0 ... {width - 1} and y of 0 ... {height - 1}'
        )
    return x, y


def _short_name(path: str | os.PathLike[str]) -> str:
    name = os.path.basename(path)
    return name if len(name) <= MAX_NAME else f'{name[: MAX_NAME // 2]}...{name[-MAX_NAME // 2 + 3 :]}'
