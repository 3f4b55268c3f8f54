"""Pictures of gradients and features."""

import numpy as np
import pytest
import skimage.feature
import torch

from simmim_plugin.models.targets import build_target, hog
from simmim_plugin.visualization.features import pca_rgb
from simmim_plugin.visualization.target_maps import drawn, strokes


def test_strokes_run_along_edges():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # its edges are vertical
    for image, vertical in ((ramp, True), (ramp.mT, False)):
        picture = strokes(hog(image, 8, 9), 9, 21)[0, 0]
        assert picture.shape == (42, 42)
        cell = picture[:21, :21] if vertical else picture[:21, :21].T
        # Of 9 bins, the fifth is that of a horizontal gradient; the first starts at a vertical one, 10 degrees off.
        assert cell[10, 10] == 1 and cell.sum(1).min() > 0.5
        assert bool(cell[:, 10].min() > 0.9) is vertical
        assert cell[:, :8].sum() + cell[:, 13:].sum() == 0


@pytest.mark.parametrize('angle', range(5, 180, 20))
def test_strokes_are_scikit_images(angle):
    """On waves in any direction; there, bins and strokes start at the other axis, so that both are transposed."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij')
    turn = np.deg2rad(angle)
    image = torch.sin(0.3 * (np.cos(turn) * x + np.sin(turn) * y))
    _, theirs = skimage.feature.hog(image.T.numpy(), 9, (16, 16), (1, 1), visualize=True)
    ours = strokes(hog(image[None, None], 16, 9), 9, 16)[0, 0].numpy()
    others = [strokes(hog(image.flip(1)[None, None], 16, 9), 9, 16)[0, 0].numpy(), ours.T]
    own, *rest = (np.corrcoef(picture.ravel(), theirs.T.ravel())[0, 1] for picture in (ours, *others))
    assert own > 0.4 and (angle in (5, 45, 85, 125, 165) or own > max(rest) + 0.1)


def test_brightness_is_the_mean_of_the_channels_and_negative_values_are_dark():
    histograms = torch.tensor([0.6, 0.0, -0.5, 0.0, 0.2, 0.0, 0.4, 0.0]).view(1, 8, 1, 1)  # 2 channels of 4 bins
    picture = strokes(histograms, 4, 17)
    assert picture[0, :, 8, 8].tolist() == pytest.approx([0.4] * 3) and picture.min() == 0


def test_predicted_features_have_the_colours_of_the_truth():
    teacher = torch.nn.Module()
    teacher.embed_dims, teacher.patch_size, teacher.in_channels, teacher.img_size = 5, 16, 3, (48, 64)
    target = build_target(dict(type='features', teacher=teacher), 16, 3)
    truth = torch.randn(2, 5, 3, 4)
    predicted = truth.clone()
    predicted[:, :, 0, 0] = truth[:, :, 2, 3]
    first, second = drawn(target, truth, predicted, (48, 64))
    assert first.shape == second.shape == (2, 3, 240, 320)
    assert torch.equal(first[:, :, 80:], second[:, :, 80:])
    assert torch.equal(second[:, :, :80, :80], first[:, :, 160:, 240:])
    alone = pca_rgb(truth[1].movedim(0, -1)).movedim(-1, 0)
    assert torch.allclose(first[1, :, ::80, ::80], alone)
    assert drawn(build_target('low_pass', 16, 3), truth, truth, (48, 64)) is None
