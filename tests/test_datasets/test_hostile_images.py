"""A folder of broken and hostile files: each ends in a right image or a counted skip, and memory stays bounded."""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import astronaut

from simmim_plugin import ImageFolder, LoadImage, RandomResizedCrop
from simmim_plugin.datasets.images import ImageReadError, read_image

PIPELINE = [dict(type='simmim_plugin.LoadImage', defer=True), dict(type='simmim_plugin.RandomResizedCrop', size=32)]
PHOTO = np.ascontiguousarray(astronaut()[:120, :160])


def encoded(kind, array=PHOTO, **kwargs):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


def png_bomb(side):
    """A PNG of a few hundred kilobytes that claims a given number of pixels."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    rows = zlib.compressobj(9)
    body = b''.join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def tiff(array, **kwargs):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **kwargs)
    return buffer.getvalue()


def with_size(jpeg, height, width):
    """A JPEG that claims another size than it has."""
    at = jpeg.index(b'\xff\xc0') + 5
    return jpeg[:at] + struct.pack('>HH', height, width) + jpeg[at + 4 :]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming_npy():
    """A .npy file whose header claims three terabytes."""
    header = io.BytesIO()
    claim = dict(descr='|u1', fortran_order=False, shape=(1_000_000, 1_000_000, 3))
    np.lib.format.write_array_header_1_0(header, claim)
    return header.getvalue() + b'123'


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded('JPEG', exif=exif)


JPEG, PNG = encoded('JPEG'), encoded('PNG')
FRAMES = [Image.fromarray(np.full((40, 50, 3), value, np.uint8)) for value in (10, 200)]


def animated(kind):
    buffer = io.BytesIO()
    FRAMES[0].save(buffer, kind, save_all=True, append_images=FRAMES[1:])
    return buffer.getvalue()


GOOD = {  # name -> content, and height and width of what is read
    'cmyk.jpg': (encoded('JPEG', Image.new('CMYK', (40, 30), (90, 9, 9, 9))), (30, 40)),
    'sixteen.png': (encoded('PNG', np.full((30, 40), 60000, np.uint16)), (30, 40)),
    'animated.gif': (animated('GIF'), (40, 50)),
    'animated.webp': (animated('WEBP'), (40, 50)),
    'turned.jpg': (turned(), (160, 120)),
    'png_called.jpg': (PNG, (120, 160)),
    'jpeg_called.png': (JPEG, (120, 160)),
    'jpeg_called.tif.jpg': (JPEG, (120, 160)),
    'line.png': (encoded('PNG', np.zeros((1, 30000), np.uint8)), (1, 30000)),
    'column.jpg': (encoded('JPEG', np.zeros((30000, 1, 3), np.uint8)), (30000, 1)),
    'dot.jpg': (encoded('JPEG', np.zeros((1, 1, 3), np.uint8)), (1, 1)),
    'palette.png': (encoded('PNG', bits=4), (120, 160)),
    'sixteen.tif': (tiff(np.full((30, 40), 60000, np.uint16)), (30, 40)),
}
BAD = {
    'cut.jpg': JPEG[:900],
    'cut.png': PNG[:900],
    'empty.jpg': b'',
    'empty.npy': b'',
    'text.jpg': b'<html>404 not found</html>',
    'zeros.png': bytes(5000),
    'bomb.png': png_bomb(20000),
    'bomb.jpg': with_size(JPEG, 60000, 60000),
    'claims.tif': tiff(np.zeros((8, 8), np.uint8)).replace(
        struct.pack('<HHII', 256, 4, 1, 8), struct.pack('<HHII', 256, 4, 1, 1 << 30)
    ),
    'objects.npy': npy(np.array([{}], object)),
    'claims.npy': claiming_npy(),
    'four_dimensions.npy': npy(np.zeros((2, 2, 2, 2), np.uint8)),
    'nothing.npy': npy(np.zeros((0, 5, 3), np.uint8)),
}


@pytest.mark.parametrize('name', GOOD)
def test_odd_files_are_read_correctly(name, tmp_path):
    content, size = GOOD[name]
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name)
    assert image.dtype == torch.uint8 and image.shape == (3, *size)
    sample = LoadImage(defer=True)({'img_path': str(tmp_path / name)})
    assert RandomResizedCrop(32)(sample)['img'].shape == (3, 32, 32)


@pytest.mark.parametrize('name', BAD)
def test_broken_files_are_errors_with_their_name(name, tmp_path):
    (tmp_path / name).write_bytes(BAD[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageReadError, match=name):
        RandomResizedCrop(32)(LoadImage(defer=True)({'img_path': str(tmp_path / name)}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_folder_of_them_is_read_to_the_end(tmp_path):
    """Also a loop of links, a link to nowhere, a folder named like an image, and a name that is no UTF-8."""
    for name, (content, _) in GOOD.items():
        (tmp_path / name).write_bytes(content)
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'gone.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    odd = os.fsencode(tmp_path) + b'/\xe9.jpg'
    with open(odd, 'wb') as file:
        file.write(JPEG[:900])
    dataset = ImageFolder(str(tmp_path), PIPELINE, max_bad_ratio=1.0)
    assert len(dataset) == len(GOOD) + len(BAD) + 2
    for i in range(len(dataset)):
        assert dataset[i]['img'].shape == (3, 32, 32)
    names = {os.path.basename(path) for path in dataset.bad_images()}
    assert names == {*BAD, 'gone.jpg', os.fsdecode(b'\xe9.jpg')}
    strict = ImageFolder(str(tmp_path), PIPELINE, max_bad_ratio=0.0)
    with pytest.raises(RuntimeError, match='cannot be read') as error:
        for i in range(len(strict)):
            strict[i]
    str(error.value).encode('utf-8')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission(tmp_path):
    (tmp_path / 'secret.jpg').write_bytes(JPEG)
    (tmp_path / 'secret.jpg').chmod(0)
    with pytest.raises(ImageReadError, match=r'secret\.jpg: .*Permission denied'):
        read_image(tmp_path / 'secret.jpg')


SEEDS = [JPEG, PNG, encoded('GIF'), encoded('WEBP'), encoded('BMP'), tiff(PHOTO), tiff(PHOTO, compression='zlib'),
         npy(PHOTO)]  # fmt: skip
SUFFIXES = ['.jpg', '.png', '.gif', '.webp', '.bmp', '.tif', '.tif', '.npy']


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, len(SEEDS) - 1),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=6)), max_size=6),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_fuzzed_files_are_images_or_errors(kind, changes, length, cut):
    data = bytearray(SEEDS[kind])
    for place, values in changes:
        at = place % len(data)
        data[at : at + len(values)] = values
    content = bytes(data[: length % len(data)] if cut else data)
    try:
        sample = LoadImage(defer=True)({'img_path': f'fuzzed{SUFFIXES[kind]}', 'img_bytes': content})
        image = RandomResizedCrop(16)(sample)['img']
    except ImageReadError as error:
        assert 'fuzzed' in str(error)
    else:
        assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB: 4 GiB
