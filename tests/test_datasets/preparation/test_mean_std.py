import numpy as np
import pytest

from simmim_plugin.datasets.preparation.mean_std import folder_mean_std


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
