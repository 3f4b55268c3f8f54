import math
import re

import numpy as np
import pytest
import tifffile

from helpers.commands import SIMMIM, run_streams
from simmim_plugin import LoadImage
from simmim_plugin.datasets.images import ImageReadError, read_image
from simmim_plugin.datasets.preparation.mean_std import folder_mean_std
from simmim_plugin.datasets.preparation.shrink import prepare_folder


def test_against_numpy_over_images_of_different_sizes(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.normal(1e6, 3, (2, 5 + i, 4)).astype(np.float32) for i in range(4)]
    for i, image in enumerate(images):
        np.save(tmp_path / f'{i}.npy', image)
    (tmp_path / 'broken.npy').write_bytes(b'nothing')
    pixels = np.concatenate([image.reshape(2, -1) for image in images], axis=1).astype(np.float64)
    mean, std = folder_mean_std(str(tmp_path), channels=2, dtype='float32')
    assert mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std(1).tolist(), rel=1e-9)


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(ValueError, match='holds no image'):
        folder_mean_std(str(tmp_path))
    np.save(tmp_path / 'flat.npy', np.ones((4, 4), np.uint8))
    for arguments, message in (
        (dict(channels=0), 'channels=0 must be a whole number of at least 1'),
        (dict(max_images=0), 'max_images=0 must be a whole number of at least 1; None uses all'),
        (dict(dtype='int8'), "dtype='int8' is unknown; choose one of 'uint8', 'float32'"),
    ):
        with pytest.raises(ValueError, match=message):
            folder_mean_std(str(tmp_path), **arguments)
    with pytest.raises(ValueError, match='channel 0 has the same value everywhere'):
        folder_mean_std(str(tmp_path), channels=1)


@pytest.fixture
def scenes(tmp_path):
    """Four scenes of two channels, a quarter of each without data (-9999), in TIFFs with and without GDAL's tag."""
    rng = np.random.default_rng(0)
    values = rng.normal(300, 40, (4, 2, 20, 20)).astype(np.float32)
    there = rng.random(values.shape) > 0.25
    for i, scene in enumerate(np.where(there, values, -9999).astype(np.float32)):
        for name, tags in (('plain', ()), ('tagged', [(42113, 's', 0, '-9999', True)])):
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f'{i}.tif', scene, photometric='minisblack', extratags=tags)
    kept = [values[:, c][there[:, c]].astype(np.float64) for c in range(2)]
    return tmp_path, [[x.mean() for x in kept], [x.std() for x in kept]], values, there


def test_missing_data_are_left_out_as_told_or_by_the_tag_of_gdal(scenes, capsys):
    folder, expected, *_ = scenes
    for name, nodata in (('plain', -9999), ('tagged', None)):
        found = folder_mean_std(str(folder / name), 2, 'float32', nodata=nodata)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert 'note:' not in capsys.readouterr().err
    folder_mean_std(str(folder / 'plain'), 2, 'float32')
    assert re.search(
        r'note: 26% of the values are -9999, the smallest; .* give --nodata -9999', capsys.readouterr().err
    )


def test_the_command_writes_the_nodata_value_into_the_config(scenes):
    folder, (mean, _), *_ = scenes
    arguments = (folder / 'plain', '--channels', '2', '--dtype', 'float32', '--nodata', '-9999')
    code, lines, _ = run_streams(*SIMMIM, 'statistics', *arguments)
    settings = {}
    exec(lines, settings)
    assert code == 0
    assert settings['load'] == dict(_delete_=True, type='LoadImage', channels=2, dtype='float32', nodata=-9999.0)
    np.testing.assert_allclose(settings['model']['data_preprocessor']['mean'], mean, rtol=1e-5)


def test_the_loader_fills_missing_data_with_the_mean_of_the_others(scenes):
    folder, _, values, there = scenes
    means = [values[0, c][there[0, c]].astype(np.float64).mean() for c in range(2)]
    expected = np.where(there[0], values[0], np.array(means).reshape(2, 1, 1))
    for name, arguments in (('plain', dict(nodata=-9999)), ('tagged', {})):
        image = LoadImage(2, 'float32', **arguments)({'img_path': str(folder / name / '0.tif')})['img']
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-6)
    assert read_image(folder / 'plain/0.tif', 2, 'float32').min() == -9999  # nothing says that it is not a value


def test_nan_rounded_and_integer_values_without_data(tmp_path):
    np.save(tmp_path / 'nan.npy', np.array([[np.nan, 2.0], [4.0, 6.0]]))
    assert read_image(tmp_path / 'nan.npy', 1, 'float32', nodata=math.nan).tolist() == [[[4, 2], [4, 6]]]
    lowest = float(np.finfo(np.float32).min)
    tifffile.imwrite(tmp_path / 'a.tif', np.array([[lowest, 1], [2, 6]], np.float32),
                     extratags=[(42113, 's', 0, '-3.40282347e+38', True)])  # fmt: skip
    assert read_image(tmp_path / 'a.tif', 1, 'float32').tolist() == [[[3, 1], [2, 6]]]
    np.save(tmp_path / 'b.npy', np.array([[0, 100], [200, 0]], np.uint8))
    assert read_image(tmp_path / 'b.npy', 1, nodata=0).tolist() == [[[150, 100], [200, 150]]]
    np.save(tmp_path / 'none.npy', np.zeros((2, 4, 4), np.float32) - [[[9999]], [[1]]])
    with pytest.raises(ImageReadError, match=r'none.npy: channel 0 has no value but nodata=-9999'):
        read_image(tmp_path / 'none.npy', 2, 'float32', nodata=-9999)
    with pytest.raises(ValueError, match=r"LoadImage.nodata='x' must be a number; e.g. -9999"):
        LoadImage(nodata='x')


def test_the_limit_is_passed_on(scenes):
    """Two channels of 20 x 20 px in float32 are 3,200 bytes."""
    folder, *_ = scenes
    code, lines, _ = run_streams(*SIMMIM, 'statistics', folder / 'tagged', '--channels', '2', '--dtype', 'float32',
                                 '--max-bytes', '3200')  # fmt: skip
    assert code == 0 and 'max_bytes=3200)' in lines
    with pytest.raises(ValueError, match='none of the 4 images'):
        folder_mean_std(str(folder / 'tagged'), 2, 'float32', max_bytes=3199)
    assert prepare_folder(str(folder / 'tagged'), str(folder / 'small'), max_bytes=3199)['unreadable'] == 4
    assert prepare_folder(str(folder / 'tagged'), str(folder / 'other'), max_bytes=3200)['copied'] == 4
