"""Masks, reconstructions and feature pictures of `simmim demo`."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.checkpoints import write_checkpoint
from simmim_plugin.apis.explorer import Explorer
from simmim_plugin.apis.reconstruct import reconstruct_files
from simmim_plugin.models.targets import build_target

GRID = 4  # 64 px in patches of 16


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / 'tiny.pth')


@pytest.fixture
def photo(image_folder):
    return next(image_folder.rglob('*.jpg'))


def test_a_painted_mask_hides_and_fills_only_its_patches(checkpoint, photo, tmp_path):
    explorer = Explorer(checkpoint)
    image = explorer.read(photo)
    made = explorer.reconstruct(image, explorer.painted_mask('0000011000000001'))
    before, side = explorer.picture(image), 16 * explorer.scale
    expected = np.zeros((GRID, GRID), bool)
    expected[1, 1:3] = expected[3, 3] = True
    for picture in (made.masked, made.composite):
        changed = (picture != before).any(2).reshape(GRID, side, GRID, side).any((1, 3))
        assert (changed == expected).all()
    assert made.hidden == 3 / 16

    painted = np.zeros((72, 80), np.uint8)  # the tool with the same patches as a picture: 64 px are 71.1 px high
    painted[18:36, 22:57] = painted[55:72, 59:76] = 255
    Image.fromarray(painted).save(tmp_path / 'mask.png')
    (loss,) = reconstruct_files(checkpoint, [photo], tmp_path / 'out.png', mask=tmp_path / 'mask.png')
    assert made.loss == pytest.approx(loss)


def test_sliders_start_at_the_masks_of_the_training(tmp_path, checkpoint):
    published = Explorer(checkpoint).training_masks()
    assert published['local'] == dict(ratio=0.6, unit=32) and published['global']['ratio'] == 0
    both = dict(local=dict(ratio=0.75, unit=16), global_=dict(ratio=0.1, unit=32))
    path = write_checkpoint(tmp_path / 'both.pth', **both, model_patch_size=16)
    assert Explorer(path).training_masks() == {'local': both['local'], 'global': both['global_']}
    assert Explorer(path).more_masks == ''
    both['local']['region_ratio'] = 0.5
    path = write_checkpoint(tmp_path / 'more.pth', **both, adapt=dict(alpha=0.3), model_patch_size=16)
    assert Explorer(path).more_masks.startswith('Its training also had adapt and local.region_ratio, ')


def test_random_masks_have_the_ratio_and_depend_on_the_seed(checkpoint):
    explorer = Explorer(checkpoint)
    local, coarse = dict(ratio=0.5, unit=16), dict(ratio=0.25, unit=32)
    masks = explorer.random_masks(local, coarse, seed=3)
    assert masks['mask_local'].sum() == 8 and masks['mask_global'].sum() == 4
    assert torch.equal(masks['mask'], masks['mask_local'] | masks['mask_global'])
    assert torch.equal(masks['mask'], explorer.random_masks(local, coarse, seed=3)['mask'])
    assert not torch.equal(masks['mask'], explorer.random_masks(local, coarse, seed=4)['mask'])
    assert list(explorer.random_masks(local, dict(ratio=0, unit=32))) == ['mask']
    with pytest.raises(ValueError, match='both ratios are 0'):
        explorer.random_masks(dict(ratio=0, unit=16), dict(ratio=0, unit=32))


def test_features_are_unmasked_while_another_thread_reconstructs(checkpoint, photo):
    explorer = Explorer(checkpoint)
    image = explorer.read(photo)
    alone = explorer.features(image)
    assert len(alone) == 3 and alone[0].shape == (GRID, GRID, 48)
    stop, hidden = threading.Event(), []

    def keep_hiding():
        while not stop.is_set():
            hidden.append(explorer.reconstruct(image, explorer.painted_mask('1' * 15 + '0')).hidden)

    other = threading.Thread(target=keep_hiding)
    other.start()
    try:
        again = [explorer.features(image) for _ in range(20)]
    finally:
        stop.set()
        other.join()
    assert hidden and set(hidden) == {15 / 16}
    for maps in again:
        assert len(maps) == 3
        for a, b in zip(maps, alone):
            torch.testing.assert_close(a, b)


def test_the_clicked_patch_is_the_most_similar_to_itself(checkpoint, photo):
    explorer = Explorer(checkpoint)
    features = explorer.features(explorer.read(photo))[-1]
    side = 16 * explorer.scale
    assert explorer.patch_at(2 * side + 1, side - 1) == (0, 2)
    assert explorer.patch_at(10**6, 10**6) == (3, 3)
    picture, low = explorer.similarity_picture(features, (0, 2))
    yellow = picture[side // 2, 2 * side + side // 2]
    assert yellow.tolist() == [253, 231, 37]  # the last colour of viridis
    vectors = torch.nn.functional.normalize(features.reshape(-1, 48), dim=1)
    assert low == pytest.approx(min(float((vectors @ vectors[2]).min()), 0.99), abs=1e-6)
    assert explorer.pca_picture(features).shape == (4 * side, 4 * side, 3)


def test_bad_input_is_named(tmp_path, checkpoint):
    explorer = Explorer(checkpoint)
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'words.png').write_text('words')
    with pytest.raises(ValueError, match=r'^words\.png: cannot identify image file$'):
        explorer.read(tmp_path / 'deep' / 'words.png')
    Image.new('RGB', (3000, 4)).save(tmp_path / 'long.png')
    with pytest.raises(ValueError, match=r'an image of 4 x 3000 px .* is too long for a crop of 64 x 64 px; crop it'):
        explorer.read(tmp_path / 'long.png')
    with pytest.raises(ValueError, match='16 digits of 0 and 1, got 3 characters'):
        explorer.painted_mask('010')
    with pytest.raises(ValueError, match='--device nowhere cannot be used'):
        Explorer(checkpoint, 'nowhere')
    explorer.model.head.target = build_target('normalized_pixels', 16, 3)
    with pytest.raises(ValueError, match='a painted mask: this model predicts patches normalised'):
        explorer.painted_mask('1' * 16)
