"""Draw tables of images: originals, masks, reconstructions, with headings and captions."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = ('original', 'masked', 'reconstruction', 'composite')
MAP_COLUMNS = ('original', 'masked', 'target', 'prediction')
PANEL_PX = 192
GAP_PX = 4
HEADER_PX = 24
MASK_GREY = 0.55
LOCAL_COLOUR = (0.30, 0.55, 0.85)  # blue; then orange, and purple where both masks overlap
GLOBAL_COLOUR = (0.95, 0.65, 0.20)
BOTH_COLOUR = (0.65, 0.35, 0.55)
Heading = str | Sequence[tuple[str, tuple[float, float, float]]]  # text, or pairs of text and colour
PARTS_HEADING = (('local', LOCAL_COLOUR), ('global', GLOBAL_COLOUR), ('both', BOTH_COLOUR))
TINT = 0.75  # share of the colour; the rest shows the masked image


def check_picture_name(out: str | os.PathLike[str]) -> None:
    """Raise ValueError unless the name has the ending of an image format."""
    if Image.registered_extensions().get(os.path.splitext(out)[1].lower()) not in Image.SAVE:
        raise ValueError(f'--out {os.fspath(out)}: no picture format has this ending; use .png')


def to_display(images: Tensor, reference: Tensor) -> Tensor:
    """Map stored values to [0, 1] grey or RGB.

    RGB with values up to 255 keeps its range. Anything else (16 bits, [0, 1], other channels) is scaled from the 1st to
    the 99th percentile of `reference`, per image. Of more than three channels the first three are shown, of two the
    first.

    Args:
        images: (B, C, H, W) in the units of the stored values.
        reference: (B, C, H, W), the originals, which determine the range.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    channels = images.shape[1]
    shown = slice(0, 3) if channels >= 3 else slice(0, 1)
    images, reference = images[:, shown].float(), reference[:, shown].float()
    if channels == 3 and reference.min() >= -0.5 and 1.5 < reference.max() <= 255.5:
        images = images / 255
    else:
        # Strided: torch.quantile accepts at most 2**24 values.
        values = reference.flatten(1)[:, :: max(1, reference[0].numel() // 100_000)]
        low, high = torch.quantile(values, torch.tensor([0.01, 0.99], device=values.device), dim=1).view(2, -1, 1, 1, 1)
        images = (images - low) / (high - low).clamp_min(1e-6)
    return images.clamp(0, 1).expand(-1, 3, -1, -1)


def masked_images(images: Tensor, mask: Tensor, parts: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Grey out masked pixels; tint local masks blue, global masks orange, and their overlap purple.

    Args:
        images: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) over the pixels, 1 = masked.
        parts: Local and global mask, (B, 1, H, W) each.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    weight = mask.to(images.dtype)
    if parts is None:
        return images * (1 - weight) + MASK_GREY * weight
    local, global_ = (part.to(images.dtype) for part in parts)
    colours = images.new_tensor((LOCAL_COLOUR, GLOBAL_COLOUR, BOTH_COLOUR)).view(3, 1, 3, 1, 1)
    tint = local * (1 - global_) * colours[0] + global_ * (1 - local) * colours[1] + local * global_ * colours[2]
    grey = images.mean(dim=1, keepdim=True)  # so that colours of the image are not mistaken for those of the masks
    return images * (1 - weight) + (1 - TINT) * weight * grey + TINT * tint


def reconstruction_sheet(
    originals: Tensor,
    reconstructions: Tensor,
    mask: Tensor,
    captions: Sequence[str] | None = None,
    parts: tuple[Tensor, Tensor] | None = None,
    filled: Tensor | None = None,
    maps: tuple[Tensor, Tensor] | None = None,
) -> np.ndarray:
    """One row per image: original | masked | reconstruction | composite.

    The composite shows the prediction where the image was masked and the image elsewhere. The reconstruction includes
    predictions of visible patches, which the loss does not train. Of a target that is not an image, the last two are
    the true and the predicted map.

    Args:
        originals: (B, C, H, W) in the units of the stored values.
        reconstructions: Same shape and units; unused with `maps`.
        mask: (B, 1, H, W) over the pixels, 1 = masked.
        captions: One line per image, drawn below its row.
        parts: Local and global mask, (B, 1, H, W) each, drawn in different colours.
        filled: (B, 1, H, W), 1 = pixel that the composite takes from the prediction. None: the masked ones.
        maps: Pictures of the true and the predicted map, (B, 3, k*H, k*W) each in [0, 1], see `target_maps.drawn`.

    Returns:
        (height, width, 3) uint8.
    """
    original = to_display(originals, originals)
    columns: list[Heading] = [*(COLUMNS if maps is None else MAP_COLUMNS)]
    if parts is not None:
        columns[1] = PARTS_HEADING
    if maps is not None:
        images = torch.stack((original, masked_images(original, mask, parts)), dim=1).movedim(2, -1)
        pair = enlarge(images, maps[0].shape[-1] // original.shape[-1]), enlarge(torch.stack(maps, 1).movedim(2, -1), 1)
        return draw_table(np.concatenate(pair, axis=1), columns, captions)
    predicted = to_display(reconstructions, originals)
    weight = (mask if filled is None else filled).to(original.dtype)
    composite = original * (1 - weight) + predicted * weight
    panels = torch.stack((original, masked_images(original, mask, parts), predicted, composite), dim=1)
    return draw_table(panel_tiles(panels), columns, captions)


def panel_tiles(panels: Tensor) -> np.ndarray:
    """Images of about `PANEL_PX` for `draw_table`: (rows, columns, 3, H, W) in [0, 1] -> (rows, columns, H', W', 3)."""
    return enlarge(panels.movedim(2, -1), max(1, round(PANEL_PX / panels.shape[-1])))


def draw_table(
    tiles: np.ndarray, columns: Sequence[Heading], captions: Sequence[str | Sequence[str]] | None
) -> np.ndarray:
    """Arrange tiles in a table with column headings and a caption below each row.

    Args:
        tiles: (rows, columns, H, W, 3) uint8.
        columns: Headings.
        captions: One per row, or several that share the width of the row.

    Returns:
        (height, width, 3) uint8.
    """
    rows, n, height, width, _ = tiles.shape
    caption_px = HEADER_PX if captions else 0
    step = height + caption_px + GAP_PX
    sheet = Image.new('RGB', (n * (width + GAP_PX) + GAP_PX, HEADER_PX + rows * step + GAP_PX), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for j, name in enumerate(columns):
        words = [(name, (0.0, 0.0, 0.0))] if isinstance(name, str) else name
        for k, (word, colour) in enumerate(words):
            x = GAP_PX + j * (width + GAP_PX) + width * (k + 0.5) / len(words)
            fill = tuple(round(255 * value) for value in colour)
            draw.text((x, HEADER_PX / 2), word, fill, font, anchor='mm')
    for i in range(rows):
        top = HEADER_PX + i * step
        for j in range(n):
            sheet.paste(Image.fromarray(tiles[i, j]), (GAP_PX + j * (width + GAP_PX), top))
        if captions:
            row = captions[i]
            texts: Sequence[str] = [row] if isinstance(row, str) else row
            for k, text in enumerate(texts):
                x = GAP_PX + k * n * (width + GAP_PX) / len(texts)
                draw.text((x, top + height + caption_px / 2), text, 'black', font, anchor='lm')
    return np.asarray(sheet)


def enlarge(pictures: Tensor | np.ndarray, factor: int) -> np.ndarray:
    """(..., h, w, 3) in [0, 1] -> (..., h * factor, w * factor, 3) uint8, by nearest neighbour."""
    pixels = (torch.as_tensor(pictures) * 255).round().to(torch.uint8).cpu().numpy()
    return pixels.repeat(factor, -3).repeat(factor, -2)


def mark_patch(tile: np.ndarray, query: tuple[int, int], patch: int) -> np.ndarray:
    """Draw a red frame with a white border around the patch, visible on any background."""
    picture = Image.fromarray(tile)
    top, left = (patch * index for index in query)
    line = max(1, tile.shape[1] // 200)
    for reach, colour, width in ((3 * line, 'white', line), (2 * line, 'red', 2 * line)):
        box = (left - reach, top - reach, left + patch - 1 + reach, top + patch - 1 + reach)
        ImageDraw.Draw(picture).rectangle(box, outline=colour, width=width)
    return np.asarray(picture)
