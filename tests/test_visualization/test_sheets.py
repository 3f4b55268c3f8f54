import numpy as np
import torch

from simmim_plugin.models.masks import pixel_mask
from simmim_plugin.visualization.sheets import GAP_PX, HEADER_PX, reconstruction_sheet, to_display


def test_sheet_shows_the_four_panels():
    original = torch.full((2, 3, 64, 64), 200.0)
    predicted = torch.full((2, 3, 64, 64), 100.0)
    mask = pixel_mask(torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 1]]]), (64, 64))
    sheet = reconstruction_sheet(original, predicted, mask)
    side = 192  # 64 px drawn three times as large
    assert sheet.dtype == np.uint8 and sheet.shape == (
        HEADER_PX + 2 * (side + GAP_PX) + GAP_PX,
        4 * (side + GAP_PX) + GAP_PX,
        3,
    )

    def pixel(row, column, y, x):
        return sheet[HEADER_PX + row * (side + GAP_PX) + y, GAP_PX + column * (side + GAP_PX) + x].tolist()

    for y, x, masked in ((10, 10, True), (150, 150, False)):
        assert pixel(0, 0, y, x) == [200] * 3
        assert pixel(0, 1, y, x) == ([140] * 3 if masked else [200] * 3)
        assert pixel(0, 2, y, x) == [100] * 3
        assert pixel(0, 3, y, x) == ([100] * 3 if masked else [200] * 3)
        assert pixel(1, 3, y, x) == [100] * 3


def test_other_ranges_are_stretched():
    ramp = torch.linspace(0, 4000, 10000).view(1, 1, 100, 100)
    shown = to_display(ramp, ramp)
    assert shown.shape == (1, 3, 100, 100)
    assert shown.min() == 0 and shown.max() == 1 and abs(shown.mean() - 0.5) < 0.01
    assert to_display(ramp.expand(1, 7, -1, -1), ramp.expand(1, 7, -1, -1)).shape == (1, 3, 100, 100)
