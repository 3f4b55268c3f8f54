import numpy as np
import pytest
import torch
from PIL import Image

from helpers.models import TINY
from simmim_plugin import SimMIM
from simmim_plugin.apis.reconstruct import reconstruct_files
from simmim_plugin.visualization.sheets import BOTH_COLOUR, GAP_PX, GLOBAL_COLOUR, HEADER_PX, LOCAL_COLOUR, TINT

SIDE = 192  # 64 px, drawn three times as large
GREY = 120


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint of an untrained model with the given masks."""

    def write(**mask):
        preprocessor = dict(type='SimMIMDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3)
        config = dict(type='SimMIM', backbone=TINY, data_preprocessor=preprocessor)
        torch.manual_seed(0)
        model = SimMIM(backbone=TINY, data_preprocessor=preprocessor)
        pipeline = [dict(type='LoadImage'), mask, dict(type='PackSimMIMInputs')]
        torch.save(dict(state_dict=model.state_dict(), simmim_plugin=dict(model=config, pipeline=pipeline)), path)
        return path

    path = tmp_path / 'tiny.pth'
    return write


@pytest.fixture
def photo(tmp_path):
    Image.new('RGB', (128, 128), (GREY,) * 3).save(tmp_path / 'grey.png')
    return tmp_path / 'grey.png'


def panel(out, column):
    sheet = np.asarray(Image.open(out)).astype(int)
    left = GAP_PX + column * (SIDE + GAP_PX)
    return sheet[HEADER_PX : HEADER_PX + SIDE, left : left + SIDE]


def test_fills_in_what_a_users_mask_hides(save, photo, tmp_path):
    holes = np.zeros((128, 128), np.uint8)
    holes[40:60, 70:76] = 255  # at half the size 20 ... 30 by 35 ... 38, within patch (1, 2) of 16 px
    Image.fromarray(holes).save(tmp_path / 'mask.png')
    checkpoint, out = save(type='SimMIMMaskGenerator'), tmp_path / 'out.png'
    (loss,) = reconstruct_files(checkpoint, [photo], out, mask=tmp_path / 'mask.png')
    hidden = (panel(out, 1) != GREY).any(axis=2)
    assert hidden[48:96, 96:144].all() and hidden.sum() == 48 * 48  # the patch, drawn three times as large
    filled = (panel(out, 3) != panel(out, 0)).any(axis=2)
    assert filled.any() and not filled[~np.pad(np.ones((30, 9), bool), ((60, 102), (105, 78)))].any()
    # An untrained model predicts little more than 0, which is the mean 120 of the data, as the image is.
    assert 0 < loss < 2


def test_tints_local_and_global_masks(save, photo, tmp_path):
    checkpoint = save(
        type='SimMIMMaskGenerator',
        local=dict(ratio=0.5, unit=16),
        global_=dict(ratio=0.25, unit=32),
        model_patch_size=16,
    )
    out = tmp_path / 'out.png'
    reconstruct_files(checkpoint, [photo], out)
    colours, counts = np.unique(panel(out, 1)[8::48, 8::48].reshape(-1, 3), axis=0, return_counts=True)
    found = {tuple(colour): count for colour, count in zip(colours.tolist(), counts.tolist())}
    tinted = [
        tuple(round(255 * (TINT * c + (1 - TINT) * GREY / 255)) for c in colour)
        for colour in (LOCAL_COLOUR, GLOBAL_COLOUR, BOTH_COLOUR)
    ]
    local, coarse, both = (found.pop(colour, 0) for colour in tinted)
    assert local + both == 8 and coarse + both == 4  # 8 of 16 units of a patch; 1 of 4 units of four patches
    assert found == {(GREY,) * 3: 16 - local - coarse - both}


def test_masks_of_other_packages_are_drawn_as_in_training(save, photo, tmp_path):
    checkpoint = save(type='mmpretrain.BEiTMaskGenerator', input_size=4, num_masking_patches=7, min_num_patches=2)
    reconstruct_files(checkpoint, [photo], tmp_path / 'out.png')
    assert (panel(tmp_path / 'out.png', 1)[8::48, 8::48] != GREY).any(axis=2).sum() == 7


def test_bad_masks_are_named(save, photo, tmp_path):
    checkpoint, out = save(type='SimMIMMaskGenerator', local=dict(ratio=0.5, unit=32)), tmp_path / 'out.png'
    Image.new('L', (100, 128)).save(tmp_path / 'small.png')
    Image.new('L', (128, 128), 1).save(tmp_path / 'black.png')
    for name, message in (
        ('small.png', r'small.png has 128 x 100 px, the image 128 x 128 \(height x width\)'),
        ('black.png', 'black.png hides nothing at 64 x 64 px: paint the area to hide white'),
    ):
        with pytest.raises(ValueError, match=message):
            reconstruct_files(checkpoint, [photo], out, mask=tmp_path / name)
    transparent = Image.new('LA', (128, 128), (255, 0))
    transparent.save(tmp_path / 'transparent.png')
    with pytest.raises(ValueError, match=r'transparent.png hides nothing'):
        reconstruct_files(checkpoint, [photo], out, mask=tmp_path / 'transparent.png')
    with pytest.raises(FileNotFoundError, match=r'--mask .*nothing.png: no such file'):
        reconstruct_files(checkpoint, [photo], out, mask=tmp_path / 'nothing.png')
    with pytest.raises(
        ValueError, match=r'--size of 50 x 60 px: both sides must be multiples of the patch, 16 px, e.g. 48 x 64'
    ):
        reconstruct_files(checkpoint, [photo], out, size=(50, 60))
    with pytest.raises(ValueError, match=r'--mask .*small.png and --mask-ratio 0.5 exclude each other'):
        reconstruct_files(checkpoint, [photo], out, mask_ratio=0.5, mask=tmp_path / 'small.png')
    with pytest.raises(ValueError, match=r'--mask-ratio 0.5: this model was trained with local and global masks'):
        reconstruct_files(checkpoint, [photo], out, mask_ratio=0.5)
    assert not out.exists()
