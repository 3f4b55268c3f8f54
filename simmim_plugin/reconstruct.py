"""Reconstruct image files with a pretrained model."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import functional as TF

from simmim_plugin.checkpoint import load_pretrained
from simmim_plugin.loading import read_image
from simmim_plugin.masking import SimMIMMaskGenerator
from simmim_plugin.reconstruction_hook import fixed_seed
from simmim_plugin.visualization import pixel_mask, reconstruction_sheet


def _arguments(pipeline: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Arguments of the first transform of a type, without its type; {} if there is none."""
    for transform in pipeline:
        if str(transform.get('type')).split('.')[-1] == name:
            return {key: value for key, value in transform.items() if key != 'type'}
    return {}


@torch.no_grad()
def reconstruct_files(
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    mask_ratio: float | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = 'cpu',
) -> list[float]:
    """Draw one row per image: original | masked | reconstruction | composite.

    Images are resized (bilinear) and centre-cropped. How they are read and masked is taken from the checkpoint.

    Args:
        checkpoint: Written by a pretraining run.
        images: Files.
        out: The picture to write.
        mask_ratio: Share of units to mask; None: the training's.
        size: Height and width in pixels; None: the training's.
        seed: Of the masks.
        device: Where to run the model.

    Returns:
        The masked-pixel loss of each image.

    Raises:
        ValueError: A file is no image or checkpoint of this kind, or an argument is out of range.
    """
    if os.path.splitext(out)[1].lower() not in Image.registered_extensions():
        raise ValueError(f'--out {os.fspath(out)}: no picture format has this ending; use .png')
    model, pipeline = load_pretrained(checkpoint, device)
    reading = {k: v for k, v in _arguments(pipeline, 'LoadImage').items() if k in ('channels', 'dtype')}
    masking = _arguments(pipeline, 'SimMIMMaskGenerator') | dict(model_patch_size=model.backbone.patch_size)
    masking['input_size'] = size = size or model.backbone.img_size
    if mask_ratio is not None:
        masking['mask_ratio'] = mask_ratio
    generator = SimMIMMaskGenerator(**masking)
    rows, losses = [], []
    with fixed_seed(seed):
        for path in images:
            image = _fit(read_image(path, **reading), size)
            mask = torch.from_numpy(generator({})['mask'])
            data = model.data_preprocessor(dict(inputs=image[None], mask=mask[None]))
            predicted = model.reconstruct(data['inputs'], data['mask'])
            pixels = pixel_mask(data['mask'], model.backbone.patch_size)
            losses.append(float(model.head.loss_module(predicted, data['inputs'], pixels)))
            denormalize = model.data_preprocessor.denormalize
            rows.append((denormalize(data['inputs']), denormalize(predicted), pixels))
    captions = [f'{os.path.basename(path)}  masked-pixel loss {loss:.3f}' for path, loss in zip(images, losses)]
    originals, reconstructions, masks = (torch.cat(parts) for parts in zip(*rows))
    sheet = reconstruction_sheet(originals, reconstructions, masks, captions)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Image.fromarray(sheet).save(out)
    return losses


def _fit(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize to cover (height, width) and crop the centre."""
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    cover = [max(side, round(scale * length)) for side, length in zip(size, image.shape[1:])]
    return TF.center_crop(TF.resize(image, cover, antialias=True), list(size))
