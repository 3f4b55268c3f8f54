import sys

import pytest
from PIL import Image

from helpers.commands import run
from helpers.paths import ROOT
from simmim_plugin.config import load_config
from simmim_plugin.visualization.mask_sheet import draw_masks
from simmim_plugin.visualization.sheets import GAP_PX, HEADER_PX

SIMULTANEOUS = str(ROOT / 'configs/ablations/mask_simultaneous.py')


def test_draws_and_measures_the_masks_of_a_config(image_folder, tmp_path):
    cfg = load_config(SIMULTANEOUS, {'data_root': str(image_folder)})
    found = draw_masks(cfg, tmp_path / 'new' / 'masks.png', rows=3, measured=20)
    assert (found.masks, found.patches) == (20, 196)
    # 37 of 49 whole units; 2 of 16 global units, of which 7 are cut at the edges.
    assert found.shares['mask_local'] == pytest.approx(37 / 49)
    assert 2 / 49 <= found.shares['mask_global'] <= 2 * 16 / 196
    assert found.shares['mask_local'] < found.shares['mask'] < found.shares['mask_local'] + found.shares['mask_global']
    assert 15 < found.average_distance < 40
    assert 'local 75.5 %' in str(found) and 'AvgDist' in str(found)
    width, height = Image.open(tmp_path / 'new' / 'masks.png').size
    assert (width, height) == (4 * (224 + GAP_PX) + GAP_PX, HEADER_PX + 3 * (224 + HEADER_PX + GAP_PX) + GAP_PX)


def test_bad_input_is_named(image_folder, tmp_path):
    cfg = load_config(SIMULTANEOUS, {'data_root': str(image_folder)})
    with pytest.raises(ValueError, match=r'--out .*masks.xyz: no picture format'):
        draw_masks(cfg, tmp_path / 'masks.xyz')
    with pytest.raises(ValueError, match='--rows=0 must be a whole number of at least 1'):
        draw_masks(cfg, tmp_path / 'masks.png', rows=0)
    with pytest.raises(ValueError, match='--masks=0 must be a whole number of at least 1'):
        draw_masks(cfg, tmp_path / 'masks.png', measured=0)
    cfg.model.backbone.patch_size = 8
    with pytest.raises(
        ValueError, match=r'masks of \(14, 14\) patches do not fit crops of 224 x 224 px and patch_size=8'
    ):
        draw_masks(cfg, tmp_path / 'masks.png', rows=1, measured=1)
    del cfg.train_dataloader.dataset.pipeline[3]
    with pytest.raises(ValueError, match='draws no mask'):
        draw_masks(cfg, tmp_path / 'masks.png')


@pytest.mark.parametrize(('name', 'hidden'), [('simmim', 40), ('random_tokens', 48), ('blockwise', 24)])
def test_named_masks_fit_the_tiny_config(image_folder, tmp_path, name, hidden):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f"_base_ = '{ROOT / 'configs/simmim_vit-tiny_folder.py'}'\nmask = dict(_delete_=True, **_base_.masks.{name})\n"
    )
    found = draw_masks(load_config(str(leaf), {'data_root': str(image_folder)}), tmp_path / 'm.png', 1, 4)
    assert found.patches == 64 and found.shares['mask'] == hidden / 64


def test_the_tool_works_without_data(tmp_path):
    tool = [sys.executable, ROOT / 'tools/visualize_masks.py']
    printed = run(*tool, ROOT / 'configs/ablations/mask_blockwise.py', '--photos', '--masks', 8, cwd=tmp_path)
    assert '8 masks over 196 patches: masked 38.3 %; AvgDist' in printed
    assert (tmp_path / 'masks.png').is_file()
    message = run(*tool, SIMULTANEOUS, cwd=tmp_path, ok=False)
    assert "error: data_root='data/imagenet/train' is not a folder" in message
