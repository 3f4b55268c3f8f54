"""Draw and measure the masks of a config on its own data, before training."""

import os
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from simmim_plugin.models.masks import MASKS, Mask, mask_side, pixel_mask
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.random_state import fixed_seed
from simmim_plugin.visualization.sheets import (
    PARTS_HEADING,
    Heading,
    check_picture_name,
    draw_table,
    masked_images,
    panel_tiles,
    to_display,
)

PAIRS = 2  # pairs of crop and masked crop in a row


class MaskStatistics(NamedTuple):
    """Means over sampled masks: share of patches under each mask, and AvgDist in pixels (`average_distance`)."""

    masks: int
    patches: int
    shares: dict[str, float]
    average_distance: float

    def __str__(self) -> str:
        names = {'mask': 'masked', 'mask_local': 'local', 'mask_global': 'global'}
        shares = ', '.join(f'{names[name]} {100 * share:.1f} %' for name, share in self.shares.items())
        return (
            f'{self.masks} masks over {self.patches} patches: {shares}; AvgDist {self.average_distance:.1f} px '
            "(the paper's best at 192 px: 10 to 20)"
        )


def draw_masks(
    cfg: Config, out: str | os.PathLike[str], rows: int = 4, measured: int = 64, seed: int = 0, photos: bool = False
) -> MaskStatistics:
    """Draw crops of the training data with their masks, and measure the masks.

    Args:
        cfg: A pretraining config.
        out: Image file to write; local and global masks have different colours.
        rows: Rows of the image, of two crops each.
        measured: Number of masks to measure, including those drawn.
        seed: Seed of images, crops and masks.
        photos: Use the photos in the scikit-image and scikit-learn wheels instead of the config's data.

    Raises:
        ValueError: The pipeline has no mask or it does not fit the model, a number is not positive, or the ending of
            `out` is not that of an image format.
    """
    check_picture_name(out)
    whole('--rows', rows, 1)
    whole('--masks', measured, 1)
    init_default_scope(cfg.default_scope)
    dataset_cfg = cfg.train_dataloader.dataset
    if photos:
        while 'dataset' in dataset_cfg:
            dataset_cfg = dataset_cfg.dataset
        dataset_cfg = dict(type='simmim_plugin.PackagePhotos', pipeline=dataset_cfg.pipeline)
    dataset = DATASETS.build(dataset_cfg)
    count = max(measured, rows * PAIRS)
    with fixed_seed(seed):
        indices = np.resize(np.random.permutation(len(dataset)), count)
        samples = [dataset[int(i)] for i in tqdm(indices, desc='masks', unit='image')]
    if 'mask' not in samples[0]:
        raise ValueError('the training pipeline draws no mask; add SimMIMMaskGenerator, or give a pretraining config')
    names = [name for name in MASKS if name in samples[0]]
    masks = {name: torch.stack([sample[name] for sample in samples]) for name in names}
    sides = samples[0]['inputs'].shape[-2:]
    grid = masks['mask'].shape[1:]
    patch = mask_side(grid, sides)
    of_model = cfg.model.backbone.get('patch_size', 16 if type_name(cfg.model.backbone) == 'SimMIMViT' else patch)
    if patch != of_model:
        raise ValueError(
            f'masks of {tuple(grid)} patches do not fit crops of {sides[0]} x {sides[1]} px and patch_size={of_model} '
            f'of the backbone; set model_patch_size={of_model} in SimMIMMaskGenerator, or input_size (in patches) in '
            'BEiTMaskGenerator'
        )
    distances = [average_distance(mask.numpy(), patch) for mask in masks['mask']]
    shown = slice(0, rows * PAIRS)
    images = torch.stack([sample['inputs'] for sample in samples[shown]])
    sheet = _sheet(images, {name: pixel_mask(mask[shown], sides) for name, mask in masks.items()}, distances)
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    Image.fromarray(sheet).save(out)
    shares = {name: float(mask.float().mean()) for name, mask in masks.items()}
    return MaskStatistics(count, masks['mask'][0].numel(), shares, float(np.mean(distances)))


def _sheet(images: Tensor, pixels: dict[str, Tensor], distances: list[float]) -> np.ndarray:
    crops = to_display(images, images)
    parts = (pixels['mask_local'], pixels['mask_global']) if 'mask_local' in pixels else None
    masked = masked_images(crops, pixels['mask'], parts)
    panels = panel_tiles(torch.stack((crops, masked), dim=1).unflatten(0, (-1, PAIRS)).flatten(1, 2))
    heading: Heading = PARTS_HEADING if parts else 'masked'
    captions = [
        [
            f'{100 * float(pixels["mask"][i].float().mean()):.0f} % masked, AvgDist {distances[i]:.1f} px'
            for i in range(start, start + PAIRS)
        ]
        for start in range(0, len(images), PAIRS)
    ]
    return draw_table(panels, ['crop', heading] * PAIRS, captions)


def average_distance(mask: Mask, patch_size: int) -> float:
    """AvgDist (arXiv 2111.09886): mean distance of the masked pixels to the nearest visible one.

    Args:
        mask: (h, w) over the patches, 1 = masked.
        patch_size: Side of a patch in pixels.

    Returns:
        Euclidean distance in pixels, between pixel centres; 0 if nothing is masked.

    Raises:
        ValueError: Nothing is visible.
    """
    if mask.all():
        raise ValueError('AvgDist is not defined if everything is masked; use a smaller ratio')
    pixels = mask.astype(np.uint8).repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    distances = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float(distances.sum() / max(1, pixels.sum()))
