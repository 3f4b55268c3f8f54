"""Pictures that people look at."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = ('original', 'masked', 'reconstruction', 'composite')
PANEL_PX = 192
GAP_PX = 4
HEADER_PX = 24
MASK_GREY = 0.55


def pixel_mask(mask: Tensor, patch_size: int) -> Tensor:
    """Patches to pixels: (B, h, w) -> (B, 1, h*p, w*p), same dtype."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2).unsqueeze(1)


def to_display(images: Tensor, reference: Tensor) -> Tensor:
    """Map stored values to [0, 1] grey or RGB.

    RGB with values up to 255 keeps its range. Anything else (16 bit, [0, 1], other channels) is stretched between the
    1st and 99th percentile of `reference`, image by image; of more than three channels the first three are shown, of
    two the first.

    Args:
        images: (B, C, H, W) in the units of the stored values.
        reference: The originals, (B, C, H, W), which set the range.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    channels = images.shape[1]
    shown = slice(0, 3) if channels >= 3 else slice(0, 1)
    images, reference = images[:, shown].float(), reference[:, shown].float()
    if channels == 3 and reference.min() >= -0.5 and 1.5 < reference.max() <= 255.5:
        images = images / 255
    else:
        # Strided, since torch.quantile takes 2**24 values at most.
        values = reference.flatten(1)[:, :: max(1, reference[0].numel() // 100_000)]
        low, high = torch.quantile(values, torch.tensor([0.01, 0.99], device=values.device), dim=1).view(2, -1, 1, 1, 1)
        images = (images - low) / (high - low).clamp_min(1e-6)
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def reconstruction_sheet(
    originals: Tensor, reconstructions: Tensor, mask: Tensor, captions: Sequence[str] | None = None
) -> np.ndarray:
    """One row per image: original | masked | reconstruction | composite.

    The composite shows the prediction where the image was masked and the image elsewhere. The prediction of
    visible patches, seen in the third column, was never trained.

    Args:
        originals: (B, C, H, W) in the units of the stored values.
        reconstructions: Same shape and units.
        mask: (B, 1, H, W) over the pixels, 1 = masked.
        captions: One line per image, drawn below its row.

    Returns:
        (height, width, 3) uint8.
    """
    original = to_display(originals, originals)
    predicted = to_display(reconstructions, originals)
    weight = mask.to(original.dtype)
    masked = original * (1 - weight) + MASK_GREY * weight
    composite = original * (1 - weight) + predicted * weight
    panels = torch.stack((original, masked, predicted, composite), dim=1)  # (B, 4, 3, H, W)
    scale = max(1, round(PANEL_PX / panels.shape[-1]))
    if scale > 1:
        panels = F.interpolate(panels.flatten(0, 1), scale_factor=scale, mode='nearest').unflatten(0, panels.shape[:2])
    tiles = (panels.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).cpu().numpy()
    return _draw_table(tiles, COLUMNS, captions)


def _draw_table(tiles: np.ndarray, columns: Sequence[str], captions: Sequence[str] | None) -> np.ndarray:
    """(rows, columns, H, W, 3) tiles under a header, each row over its caption."""
    rows, n, height, width, _ = tiles.shape
    caption_px = HEADER_PX if captions else 0
    step = height + caption_px + GAP_PX
    sheet = Image.new('RGB', (n * (width + GAP_PX) + GAP_PX, HEADER_PX + rows * step + GAP_PX), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for j, name in enumerate(columns):
        draw.text((GAP_PX + j * (width + GAP_PX) + width / 2, HEADER_PX / 2), name, 'black', font, anchor='mm')
    for i in range(rows):
        top = HEADER_PX + i * step
        for j in range(n):
            sheet.paste(Image.fromarray(tiles[i, j]), (GAP_PX + j * (width + GAP_PX), top))
        if captions:
            draw.text((GAP_PX, top + height + caption_px / 2), captions[i], 'black', font, anchor='lm')
    return np.asarray(sheet)
