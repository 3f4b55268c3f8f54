"""The small data sets of `simmim sample`."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim_plugin import cli
from simmim_plugin.datasets.image_folder import ImageFolder
from simmim_plugin.datasets.preparation import sample_sets


def test_photos_and_digits(tmp_path):
    sample_sets.make('photos', tmp_path / 'photos')
    assert len(ImageFolder(str(tmp_path / 'photos'))) == 384
    sample_sets.make('digits', tmp_path / 'digits')
    counts = {
        part: [len(list(folder.iterdir())) for folder in sorted((tmp_path / 'digits' / part).iterdir())]
        for part in ('train', 'val')
    }
    assert counts == {'train': [80] * 10, 'val': [40] * 10}


def test_shapes_agree_in_annotations_and_masks(tmp_path):
    sample_sets.make('shapes', tmp_path / 'shapes')
    classes = (tmp_path / 'shapes/classes.txt').read_text().split()
    for part, count in (('train', 40), ('valid', 12)):
        coco = json.loads((tmp_path / f'shapes/annotations/{part}.json').read_text())
        assert len(coco['images']) == count
        assert ['background', *(category['name'] for category in coco['categories'])] == classes
        for image in coco['images']:
            own = [a for a in coco['annotations'] if a['image_id'] == image['id']]
            name = image['file_name'].replace('.jpg', '.png')
            mask = np.asarray(Image.open(tmp_path / f'shapes/masks/{part}/{name}'))
            assert set(np.unique(mask)) <= {0, *(a['category_id'] for a in own)} and 2 <= len(own) <= 4
            top = own[-1]  # painted last, so nothing lies over it
            x, y, width, height = top['bbox']
            rows, columns = np.nonzero(mask == top['category_id'])
            assert rows.size >= 0.97 * top['area'] and columns.size  # outlines are painted with their edge
            inside = mask[round(y + height / 2), round(x + width / 2)]
            assert inside == top['category_id']


def test_scans_have_sixteen_bits(tmp_path):
    sample_sets.make('scans', tmp_path / 'scans')
    values = np.stack([tifffile.imread(path) for path in (tmp_path / 'scans').iterdir()])
    assert values.shape == (64, 160, 160) and values.dtype == np.uint16 and 255 < values.max() <= 4095


def test_nothing_is_overwritten(tmp_path, capsys):
    cli.main(['sample', 'digits', str(tmp_path / 'new')])
    assert capsys.readouterr().out == f'{tmp_path}/new: train/ and val/ with ten classes\n'
    with pytest.raises(ValueError, match="kind='cats' is unknown; choose one of 'photos', 'digits', 'shapes', 'scans'"):
        sample_sets.make('cats', tmp_path / 'cats')
    with pytest.raises(SystemExit, match='already exists and is not empty; give a new folder'):
        cli.main(['sample', 'digits', str(tmp_path / 'new')])
