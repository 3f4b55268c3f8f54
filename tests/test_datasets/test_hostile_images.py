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
from torch.utils.data import DataLoader

from simmim_plugin import ImageFolder, LoadImage, RandomResizedCrop, TarShards
from simmim_plugin.datasets.images import ImageReadError, read_image
from simmim_plugin.datasets.preparation.mean_std import folder_mean_std
from simmim_plugin.datasets.preparation.shrink import prepare_folder
from simmim_plugin.datasets.tar_shards import write_shards

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


def cut_jpeg(side):
    """A JPEG that claims a size and has pixels of 16 x 16 px: libjpeg takes the rest to be grey."""
    return with_size(encoded('JPEG', np.zeros((16, 16, 3), np.uint8)), side, side)


def peak_in_child(call):
    """MiB that a forked process needs more than before, and its exit code: 0 for an ImageReadError."""
    pid = os.fork()
    if not pid:
        before, code = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 1
        try:
            call()
        except ImageReadError:
            code = 0
        finally:
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            os._exit(code or min(255, 10 + grown // 10))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == 1 else 10 * (code - 10)


def deep_tiff(path):
    """A TIFF of some 100 kB: 5 GB of zeros, 30 samples per pixel."""
    tile = zlib.compress(bytes(2048 * 2048 * 30))
    tifffile.imwrite(
        path, iter([tile] * 49), shape=(13000, 13000, 30), dtype=np.uint8, tile=(2048, 2048), compression='zlib',
        photometric='minisblack', planarconfig='contig',
    )  # fmt: skip


TOO_LARGE = {
    'deep.tif': deep_tiff,
    'grey.jpg': lambda path: path.write_bytes(cut_jpeg(13000)),
    'grey.png': lambda path: path.write_bytes(png_bomb(14000)),
    'pages.tif': lambda path: tifffile.imwrite(path, np.zeros((600, 1024, 1024), np.uint8), compression='zlib'),
}


@pytest.mark.parametrize('name', TOO_LARGE)
def test_the_limit_counts_the_bytes_of_the_decoded_array(name, tmp_path):
    TOO_LARGE[name](tmp_path / name)
    for channels, defer in ((30, False), (3, True)):
        load = LoadImage(channels, defer=defer)
        assert peak_in_child(lambda load=load: load({'img_path': str(tmp_path / name)})) <= 300  # MiB


def test_copies_are_prepared_within_the_limit(tmp_path):
    """TIFF, .npy and photos: what `LoadImage` refuses is unreadable, and is not decoded to find that out."""
    source = tmp_path / 'source'
    source.mkdir()
    for name, make in TOO_LARGE.items():
        make(source / name)
    np.lib.format.open_memmap(source / 'array.npy', 'w+', np.uint16, (20000, 20000))  # 800 MB that take no disk
    assert peak_in_child(lambda: _refused(prepare_folder(str(source), str(tmp_path / 'copies'), workers=1))) <= 300
    reasons = (tmp_path / 'copies/unreadable.txt').read_text().splitlines()
    words = {
        'array.npy': 'it takes 800,000,128 bytes, more than max_bytes=536', 'deep.tif': 'it takes 5,070,000,000 bytes',
        'grey.jpg': 'bytes cannot hold the 13000 x 13000 px', 'grey.png': 'exceeds limit of 178956970 pixels',
        'pages.tif': 'it takes 629,145,600 bytes',
    }  # fmt: skip
    for name, expected in words.items():
        assert [expected in reason for reason in reasons if name in reason] == [True], reasons
    Image.fromarray(np.zeros((300, 500, 4), np.uint8)).save(source / 'alpha.png')
    assert prepare_folder(str(source), str(tmp_path / 'more'), workers=1)['shrunk'] == 1
    assert prepare_folder(str(source), str(tmp_path / 'less'), workers=1, max_bytes=599_999)['unreadable'] == 6


def _refused(counts):
    if counts['unreadable'] == 5:
        raise ImageReadError('all of them')  # what `peak_in_child` expects


def test_the_limit_is_stated_and_can_be_set(tmp_path):
    """100 x 50 px of 3 bytes are 15,000 bytes, of 3 floats 60,000."""
    for name, content in (('a.png', encoded('PNG', np.zeros((50, 100, 3), np.uint8))),
                          ('a.jpg', encoded('JPEG', np.zeros((50, 100, 3), np.uint8))),
                          ('a.tif', tiff(np.zeros((50, 100, 3), np.uint8)))):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        sample = {'img_path': str(tmp_path / name)}
        assert LoadImage(max_bytes=15_200)(dict(sample))['img'].shape == (3, 50, 100)
        with pytest.raises(ImageReadError, match=rf'{name}: it takes 15,000 bytes, more than max_bytes=14,999 of Load'):
            LoadImage(max_bytes=14_999, defer=True)(dict(sample))
        with pytest.raises(ImageReadError, match=r'it takes 60,000 bytes, more than max_bytes=59,999'):
            LoadImage(max_bytes=59_999, dtype='float32')(dict(sample))
    with pytest.raises(ValueError, match=r'LoadImage.max_bytes=0 must be a whole number of at least 1'):
        LoadImage(max_bytes=0)


def test_what_holds_no_pixels_is_a_bad_image(tmp_path):
    content = bytearray(tiff(np.full((64, 64), 7, np.uint8)))
    at = content.index(struct.pack('<HHII', 279, 4, 1, 4096))  # StripByteCounts
    content[at + 8 : at + 12] = bytes(4)
    (tmp_path / 'nothing.tif').write_bytes(content)
    with pytest.raises(ImageReadError, match=r'nothing.tif: it holds no pixels'):
        read_image(tmp_path / 'nothing.tif')


SPECIAL = ['pipe.jpg', 'pipe.png', 'pipe.tif', 'pipe.npy', 'device.jpg', 'link.jpg']


@pytest.fixture
def special(tmp_path):
    """Five photos, and named pipes and devices that are called like images: a pipe waits for ever for a writer."""
    for i in range(5):
        (tmp_path / f'{i}.jpg').write_bytes(JPEG)
    for name in SPECIAL[:4]:
        os.mkfifo(tmp_path / name)
    (tmp_path / 'device.jpg').symlink_to('/dev/zero')
    (tmp_path / 'link.jpg').symlink_to(tmp_path / 'pipe.jpg')
    return tmp_path


@pytest.mark.parametrize('workers', [0, 2])
def test_a_named_pipe_is_a_bad_image(special, workers):
    dataset = ImageFolder(str(special), PIPELINE, max_bad_ratio=1.0)
    loader = DataLoader(dataset, 4, num_workers=workers, timeout=60 if workers else 0)
    assert sum(len(batch['img']) for batch in loader) == 11
    assert {os.path.basename(path) for path in dataset.bad_images()} == set(SPECIAL)


def test_no_tool_waits_for_a_named_pipe(special, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    folder_mean_std(str(special))
    assert prepare_folder(str(special), str(out / 'small'))['unreadable'] == len(SPECIAL)
    with pytest.raises(OSError, match=r"Not a regular file: '.*(pipe|link|device)\."):
        write_shards(special, out / 'shards', 1)
    (out / 'tar').mkdir()
    os.mkfifo(out / 'tar/a.tar')
    with pytest.raises(ValueError, match=r'a.tar is damaged, or not an uncompressed tar file .*Not a regular file'):
        TarShards(str(out / 'tar'))


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
