"""Reconstruct masked image files with a pretrained model."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image
from torchvision.transforms import functional as TF

from simmim_plugin.checkpoints.loading import load_pretrained
from simmim_plugin.datasets.images import PHOTO_SUFFIXES, read_image
from simmim_plugin.datasets.transforms.masking import SimMIMMaskGenerator
from simmim_plugin.models.losses import masked_loss
from simmim_plugin.models.masks import MASKS, pixel_mask
from simmim_plugin.registry import SCOPE
from simmim_plugin.utils.arguments import grid_of, sides
from simmim_plugin.utils.configs import reading_arguments, transform_arguments, type_name
from simmim_plugin.utils.random_state import fixed_seed
from simmim_plugin.visualization.sheets import check_picture_name, reconstruction_sheet
from simmim_plugin.visualization.target_maps import drawn

LONGEST = 32  # largest ratio of an image's proportions to the crop's
WHITE = 127  # of 255; brighter pixels of a mask are hidden


@torch.no_grad()
def reconstruct_files(
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    mask_ratio: float | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = 'cpu',
    mask: str | os.PathLike[str] | None = None,
) -> list[float]:
    """Draw one row per image: original | masked | reconstruction | composite.

    Of a target that is not an image, the last two are the true and the predicted map. Images are resized (bilinear) and
    centre-cropped. The checkpoint defines how they are read and masked.

    Args:
        checkpoint: Checkpoint of a pretraining.
        images: Image files.
        out: The picture to write.
        mask_ratio: Fraction of units to mask; None: the training's.
        size: Height and width in pixels; None: the training's.
        seed: Seed of the masks.
        device: Device of the model.
        mask: An image of the size of the images, instead of random masks; its white pixels are hidden and filled in.
            Patches that contain one are hidden from the model; the composite fills exactly the white pixels.

    Returns:
        The loss of what is masked of each image.

    Raises:
        ValueError: A file is not an image or checkpoint of this kind, or an argument is out of range.
    """
    check_picture_name(out)
    if mask is not None and mask_ratio is not None:
        raise ValueError(f'--mask {os.fspath(mask)} and --mask-ratio {mask_ratio} exclude each other')
    model, pipeline = load_pretrained(checkpoint, device)
    reading = reading_arguments(pipeline)
    trained, patch = masked_sizes(model, pipeline)
    size = sides('--size', trained if size is None else size)
    grid_of('--size', size, model.head.patch_size)
    if mask is not None:
        check_fills_holes(model, f'--mask {os.fspath(mask)}')
    generator = None if mask is not None else _generator(pipeline, patch, size, mask_ratio)
    rows, losses = [], []
    with fixed_seed(seed):
        for path in images:
            image = read_image(path, **reading)
            if mask is not None:
                holes = _holes(mask, tuple(image.shape[1:]), size)
                masks = {'mask': F.max_pool2d(holes, patch)[0]}
            elif generator is not None:
                drawn = generator({})
                masks = {name: torch.from_numpy(drawn[name])[None] for name in MASKS if name in drawn}
            row, loss = reconstruct_image(model, fit_image(image, size), masks, None if mask is None else holes)
            rows.append(row)
            losses.append(loss)
    words = f'masked-{model.head.target.unit} loss'
    captions = [f'{os.path.basename(path)}  {words} {loss:.3f}' for path, loss in zip(images, losses)]
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    parts = (joined['mask_local'], joined['mask_global']) if 'mask_local' in joined else None
    maps = (joined['truth'], joined['predicted']) if 'truth' in joined else None
    sheet = reconstruction_sheet(
        joined['inputs'], joined['predicted'], joined['mask'], captions, parts, joined['filled'], maps
    )
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Image.fromarray(sheet).save(out)
    return losses


@torch.no_grad()
def reconstruct_image(
    model: Any, image: torch.Tensor, masks: Mapping[str, torch.Tensor], filled: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """Mask one image and reconstruct it.

    Args:
        model: A `SimMIM` in evaluation mode.
        image: (C, H, W) in the units of the stored values.
        masks: `mask`, or also `mask_local` and `mask_global`, (1, h, w) over the patches, 1 = masked.
        filled: Pixels that a composite takes from the prediction, (1, 1, H, W). None: the masked pixels.

    Returns:
        `inputs` and `predicted`, (1, C, H, W) in the units of the image; the masks and `filled`, (1, 1, H, W) over the
        pixels; and the loss of what is masked. Of a target that is not an image, `predicted` and `truth` are pictures
        of the maps, (1, 3, k*H, k*W) in [0, 1].
    """
    data = model.data_preprocessor(dict(inputs=image[None], **masks))
    predicted = model.reconstruct(data['inputs'], data['mask'])
    inputs, target = data['inputs'], model.head.target
    truth = target(inputs)
    pixels = {name: pixel_mask(data[name], data['inputs'].shape[2:]) for name in masks}
    loss = masked_loss(model, predicted, inputs, pixels['mask'], truth)
    pixels['filled'] = pixels['mask'] if filled is None else filled.to(predicted)
    denormalize = model.data_preprocessor.denormalize
    row = {'inputs': denormalize(inputs), **pixels}
    maps = drawn(target, truth, predicted, inputs.shape[2:])
    shown = {'predicted': denormalize(predicted)} if maps is None else dict(zip(('truth', 'predicted'), maps))
    return row | shown, loss


def masked_sizes(model: Any, pipeline: Sequence[dict[str, Any]]) -> tuple[Any, int]:
    """Size of the images of a training, and side of the patches that its masks are over, in pixels.

    The pipeline says the latter; the size is the backbone's or, where it says none (MMPretrain's Swin), the crop's.
    """
    crop = transform_arguments(pipeline, 'RandomResizedCrop')
    masking = transform_arguments(pipeline, 'SimMIMMaskGenerator')
    size = getattr(model.backbone, 'img_size', crop.get('size'))
    return size, masking.get('model_patch_size', getattr(model.backbone, 'patch_size', 16))


def check_fills_holes(model: Any, name: str) -> None:
    """Raise a ValueError that starts with `name` if the model cannot predict the colours of a hidden patch."""
    if words := model.head.target.no_colours:
        raise ValueError(f'{name}: this model predicts {words}; use a model that predicts pixels')


def _generator(
    pipeline: Sequence[dict[str, Any]], patch_size: int, size: tuple[int, int], mask_ratio: float | None
) -> Any:
    """The mask generator of the training for images of a size, with another ratio if one is given."""
    masking = transform_arguments(pipeline, 'SimMIMMaskGenerator')
    other = next((t for t in pipeline if type_name(t).endswith('MaskGenerator')), None)
    if not masking and other is not None and mask_ratio is None:  # such as mmpretrain.BEiTMaskGenerator
        init_default_scope(SCOPE)
        return TRANSFORMS.build(other)  # its type was checked when the checkpoint was read
    if mask_ratio is not None and ('local' in masking or 'global_' in masking):
        raise ValueError(
            f'--mask-ratio {mask_ratio}: this model was trained with local and global masks; leave the ratio out, or '
            'give a mask with --mask'
        )
    masking |= dict(model_patch_size=patch_size, input_size=size)
    if mask_ratio is not None:
        masking['mask_ratio'] = mask_ratio
    return SimMIMMaskGenerator(**masking)


def _holes(path: str | os.PathLike[str], image_size: tuple[int, ...], size: tuple[int, int]) -> torch.Tensor:
    """A user's mask, resized to the model's input: (1, 1, H, W) float, 1 = hidden."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'--mask {os.fspath(path)}: no such file (from {os.getcwd()})')
    mask = read_image(path, channels=1)
    if os.path.splitext(path)[1].lower() in PHOTO_SUFFIXES:
        with Image.open(path) as file:
            if 'A' in file.getbands():  # transparent pixels are not painted
                mask = mask * (torch.from_numpy(np.array(file.getchannel('A'))) > WHITE)
    if tuple(mask.shape[1:]) != image_size:
        raise ValueError(
            f'--mask {os.fspath(path)} has {mask.shape[1]} x {mask.shape[2]} px, the image {image_size[0]} x '
            f'{image_size[1]} (height x width); they must agree'
        )
    holes = (fit_image((mask > WHITE).float(), size) >= 0.5).float()[None]
    if not holes.any():
        raise ValueError(
            f'--mask {os.fspath(path)} hides nothing at {size[0]} x {size[1]} px: paint the area to hide white, '
            'large enough and within the centre crop'
        )
    return holes


def fit_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (C, H, W) to cover (height, width), bilinear, and crop the centre.

    Raises:
        ValueError: The image is so long and narrow that the crop would contain hardly any of it.
    """
    shares = sorted(length / side for length, side in zip(image.shape[1:], size))
    if shares[1] > LONGEST * shares[0]:
        raise ValueError(
            f'an image of {image.shape[1]} x {image.shape[2]} px (height x width) is too long for a crop of '
            f'{size[0]} x {size[1]} px; crop it first'
        )
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    cover = [max(side, round(scale * length)) for side, length in zip(size, image.shape[1:])]
    return TF.center_crop(TF.resize(image, cover, antialias=True), list(size))
