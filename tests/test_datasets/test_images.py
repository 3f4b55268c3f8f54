import pickle

import numpy as np
import pytest
import tifffile
import torch
from mmengine.logging import MMLogger
from PIL import Image

from simmim_plugin import LoadImage, PackSimMIMInputs
from simmim_plugin.datasets.images import ImageReadError, read_image


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(array: np.ndarray, path, mode=None, **kwargs) -> str:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **kwargs)
    return str(path)


def test_rgb_is_read_unchanged(rgb, tmp_path):
    image = read_image(save(rgb, tmp_path / 'a.png'))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(rgb).permute(2, 0, 1))


def test_grey_is_repeated_or_kept(rgb, tmp_path):
    path = save(rgb[..., 0], tmp_path / 'a.png')
    expected = torch.from_numpy(rgb[..., 0])
    assert torch.equal(read_image(path, 3), expected.expand(3, -1, -1))
    assert torch.equal(read_image(path, 1), expected[None])


def test_colour_becomes_luma_for_one_channel(rgb, tmp_path):
    luma = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    image = read_image(save(rgb, tmp_path / 'a.png'), 1)
    assert np.abs(image[0].numpy() - luma).max() <= 1


def test_alpha_is_dropped(rgb, tmp_path):
    rgba = np.concatenate((rgb, np.full((6, 8, 1), 7, np.uint8)), axis=2)
    path = save(rgba, tmp_path / 'a.png')
    assert torch.equal(read_image(path, 3), torch.from_numpy(rgb).permute(2, 0, 1))
    assert torch.equal(read_image(path, 4), torch.from_numpy(rgba).permute(2, 0, 1))


def test_palette_with_transparency(rgb, tmp_path):
    few = (rgb // 128) * 128
    image = Image.fromarray(few).quantize(16)
    image.save(tmp_path / 'a.png', transparency=0)
    assert torch.equal(read_image(tmp_path / 'a.png'), torch.from_numpy(few).permute(2, 0, 1))


def test_cmyk_becomes_rgb(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    image = read_image(save(flat, tmp_path / 'a.jpg', 'CMYK', quality=100))
    assert image.shape == (3, 16, 16)
    assert np.abs(image.float().mean((1, 2)).numpy() - flat[0, 0]).max() < 3


def test_values_that_eight_bits_lose_are_reported_once(tmp_path, monkeypatch, capsys):
    """Twelve of sixteen bits, as scans have: 4,095 / 257 = 15.9."""
    monkeypatch.setattr('simmim_plugin.datasets.images._WARNED_OF', [])
    MMLogger.get_instance('sixteen_bits')
    for name, top in (('photo', 65535), ('scan', 4095), ('other_scan', 4095)):
        tifffile.imwrite(tmp_path / f'{name}.tif', np.array([[0, top]], np.uint16))
        read_image(tmp_path / f'{name}.tif')
        read_image(tmp_path / f'{name}.tif', dtype='float32')
    log = capsys.readouterr().out
    assert log.count('of 65535') == 1 and '/scan.tif: its values reach 4095 of 65535, of which 8 bits keep 16' in log


@pytest.mark.parametrize('suffix', ['png', 'tif', 'npy'])
def test_sixteen_bits_are_scaled_to_eight_or_kept(suffix, tmp_path):
    values = np.array([[0, 257, 128], [65535, 300, 257 * 200]], np.uint16)
    path = str(tmp_path / f'a.{suffix}')
    if suffix == 'npy':
        np.save(path, values)
    elif suffix == 'tif':
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)
    assert read_image(path, 1).tolist() == [[[0, 1, 0], [255, 1, 200]]]
    assert read_image(path, 3).shape == (3, 2, 3)
    raw = read_image(path, 1, 'float32')
    assert raw.dtype == torch.float32 and raw[0].tolist() == values.tolist()


def test_exif_orientation_is_applied(rgb, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    path = save(rgb, tmp_path / 'a.png', exif=exif)
    assert torch.equal(read_image(path), torch.from_numpy(np.rot90(rgb, -1).copy()).permute(2, 0, 1))


@pytest.mark.parametrize('suffix', ['npy', 'tif'])
@pytest.mark.parametrize('first', [True, False])
def test_many_channels_in_both_orders(suffix, first, tmp_path):
    scene = np.random.default_rng(0).normal(size=(5, 12, 10)).astype(np.float32)
    stored = np.ascontiguousarray(scene if first else scene.transpose(1, 2, 0))
    path = str(tmp_path / f'a.{suffix}')
    np.save(path, stored) if suffix == 'npy' else tifffile.imwrite(path, stored, photometric='minisblack')
    assert torch.equal(read_image(path, 5, 'float32'), torch.from_numpy(scene))


@pytest.mark.parametrize('compression', ['zlib', 'lzw', 'jpeg'])
def test_compressed_tiff(compression, tmp_path):
    flat = np.full((16, 16, 3), 90, np.uint8)
    tifffile.imwrite(tmp_path / 'a.tiff', flat, compression=compression, photometric='rgb')
    assert (read_image(tmp_path / 'a.tiff').int() - 90).abs().max() <= 2


def test_colours_of_tiff_are_converted(tmp_path):
    flat = np.full((16, 12, 3), (192, 96, 48), np.uint8)
    cmyk = read_image(save(flat, tmp_path / 'cmyk.tif', 'CMYK'))
    assert cmyk.shape == (3, 16, 12) and (cmyk[:, 0, 0] - torch.tensor([192, 96, 48])).abs().max() <= 2
    Image.fromarray(flat).quantize(4).save(tmp_path / 'palette.tif')
    assert read_image(tmp_path / 'palette.tif')[:, 0, 0].tolist() == [192, 96, 48]
    tifffile.imwrite(tmp_path / 'white.tif', np.full((8, 8), 55, np.uint8), photometric='miniswhite')
    assert read_image(tmp_path / 'white.tif', 1).unique().tolist() == [200]


@pytest.mark.parametrize('size', [(1, 7), (3, 7), (2, 9), (1, 1), (7, 1)])
def test_tiny_photos_keep_their_axes(size, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert torch.equal(read_image(save(array, tmp_path / 'a.png')), torch.from_numpy(array).permute(2, 0, 1))


def test_byte_order_of_arrays_does_not_matter(tmp_path):
    np.save(tmp_path / 'big.npy', np.array([[257, 65535]], dtype='>u2'))
    assert read_image(tmp_path / 'big.npy', 1).tolist() == [[[1, 255]]]


def bad_files(folder, rgb):
    np.save(folder / 'five.npy', np.zeros((5, 8, 8), np.uint8))
    np.save(folder / 'float.npy', np.zeros((8, 8), np.float32))
    np.save(folder / 'line.npy', np.zeros(8, np.uint8))
    np.save(folder / 'pickle.npy', np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / 'nan.npy', np.array([[0.0, np.nan], [np.inf, 1]]))
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    full = (folder / 'whole.jpg', save(big, folder / 'whole.jpg'))[0].read_bytes()
    (folder / 'cut.jpg').write_bytes(full[: len(full) // 2])
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'text.jpg').write_text('no image')
    return {
        'five.npy': 'it has 5 channels, but channels=3 are wanted',
        'float.npy': "set dtype='float32'",
        'line.npy': r'shape \(8,\) is not an image',
        'pickle.npy': 'allow_pickle=False',
        'cut.jpg': 'truncated',
        'empty.png': 'cannot identify',
        'text.jpg': 'cannot identify',
        'missing.png': 'no such file',
    }


def test_bad_files_are_named(rgb, tmp_path):
    reasons = bad_files(tmp_path, rgb)
    with pytest.raises(ImageReadError, match='2 values are NaN or infinite'):
        read_image(tmp_path / 'nan.npy', 1, 'float32')
    for name, reason in reasons.items():
        with pytest.raises(ImageReadError, match=rf'{name}: .*{reason}'):
            read_image(tmp_path / name)
    for name in ('folder', 'folder.tif', 'folder.npy', 'folder.jpg'):
        (tmp_path / name).mkdir()
        with pytest.raises(ImageReadError, match=rf'{name}: a folder; give image files'):
            read_image(tmp_path / name)


def test_transform_keeps_decoded_images(rgb, tmp_path):
    path = save(rgb, tmp_path / 'a.png')
    load = LoadImage(keep=1)
    first = load({'img_path': path})['img']
    assert load({'img_path': path})['img'] is first
    assert torch.equal(pickle.loads(pickle.dumps(load))({'img_path': path})['img'], first)  # spawned workers
    assert PackSimMIMInputs()({'img': first, 'mask': np.ones((1, 2), np.uint8)})['mask'].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="dtype='int8' is unknown"):
        LoadImage(dtype='int8')
    with pytest.raises(ValueError, match=r'LoadImage.channels=0 must be a whole number of at least 1; 3 for RGB'):
        LoadImage(channels=0)
    with pytest.raises(ValueError, match=r'LoadImage.keep=-1 must be a whole number of at least 0'):
        LoadImage(keep=-1)


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_packed_images_are_contiguous_planes_whatever_their_memory_order(rgb, dtype):
    image = np.ascontiguousarray(rgb.transpose(2, 0, 1).astype(dtype))
    last = torch.from_numpy(rgb.astype(dtype)).permute(2, 0, 1)
    flipped = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1]))
    for given, expected in (
        (image, last),
        (image[:, :, ::-1], flipped),
        (last, last),
        (last[:, 1:, 2:], last[:, 1:, 2:]),
    ):
        packed = PackSimMIMInputs()({'img': given})['inputs']
        assert packed.is_contiguous() and torch.equal(packed, expected)


def test_an_image_that_is_there_is_converted(tmp_path):
    """Arrays in either order, grey, with alpha, and PIL images, against the same pixels in a file."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / 'photo.png')
    expected = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    bgr, rgba = rgb[..., ::-1], np.dstack([rgb, np.full((6, 5), 9, np.uint8)])
    for transform, given in (
        (LoadImage(), bgr),
        (LoadImage(), np.dstack([bgr, rgba[..., 3]])),
        (LoadImage(array_order='rgb'), rgb),
        (LoadImage(array_order='rgb'), rgba),
        (LoadImage(defer=True), Image.fromarray(rgb)),
        (LoadImage(), Image.fromarray(rgba)),
    ):
        assert torch.equal(transform({'img': given, 'kept': 1})['img'], expected)
    for channels, transform in ((1, LoadImage(channels=1)), (3, LoadImage())):
        grey = rgb[..., 0]
        assert torch.equal(transform({'img': grey})['img'], torch.from_numpy(grey.copy()).expand(channels, -1, -1))
    path = str(tmp_path / 'photo.png')
    assert torch.equal(LoadImage(channels=1)({'img': bgr})['img'], LoadImage(channels=1)({'img_path': path})['img'])
    bands = rng.random((5, 6, 7), dtype=np.float32)
    transform = LoadImage(channels=7, dtype='float32')
    assert torch.equal(transform({'img': bands})['img'], torch.from_numpy(bands.transpose(2, 0, 1).copy()))
    with pytest.raises(ImageReadError, match='given as img: it has 5 channels, but channels=3 are wanted'):
        LoadImage()({'img': bands})
    with pytest.raises(ValueError, match="array_order='grb' is unknown"):
        LoadImage(array_order='grb')
