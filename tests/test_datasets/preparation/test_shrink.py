"""Shrinking a folder of images once."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from helpers.commands import run
from helpers.paths import ROOT
from simmim_plugin import PackagePhotos
from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.datasets.images import read_image
from simmim_plugin.datasets.preparation.shrink import Settings, prepare_folder, shrink
from simmim_plugin.utils.files import MAX_BYTES

TOOL = [sys.executable, ROOT / 'tools/prepare_dataset.py']


@pytest.fixture
def photo() -> Image.Image:
    """600 x 400 px, smooth."""
    low = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((600, 400), Image.Resampling.BICUBIC)


def test_pixels_are_those_of_full_decoding_and_resizing(tmp_path):
    """Real photos: like Pillow's antialiased resizing of the full photo, except for JPEGs decoded at a fraction."""
    differences = {}
    for path in [info['img_path'] for info in PackagePhotos().load_data_list()]:
        with Image.open(path) as opened:
            photo = opened.convert('RGB')
        scale = 100 / min(photo.size)
        size = [max(100, round(scale * side)) for side in photo.size]
        photo.resize(size, Image.Resampling.BICUBIC).save(tmp_path / 'expected.jpg', quality=95)
        (tmp_path / 'found.jpg').write_bytes(shrink(path, Settings(100, quality=95), MAX_BYTES))
        expected, found = (read_image(tmp_path / f'{name}.jpg').float() for name in ('expected', 'found'))
        assert found.shape == expected.shape and min(found.shape[1:]) == 100
        differences[path.rsplit('/', 1)[-1]] = (found - expected).abs().mean().item()
    jpegs = [value for name, value in differences.items() if name.endswith('.jpg')]
    assert len(differences) == 9 and len(jpegs) == 5
    assert sum(differences.values()) == sum(jpegs) and 0 < sum(jpegs) / len(jpegs) < 2, differences


def test_result_for_each_kind_of_file(photo, tmp_path):
    source = tmp_path / 'source'
    (source / 'class').mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo.save(source / 'class/turned.jpg', exif=exif)
    photo.save(source / 'class/photo.png')
    photo.convert('L').save(source / 'grey.webp')
    photo.convert('CMYK').save(source / 'print.jpeg')
    photo.resize((60, 40)).save(source / 'small.JPG', quality=70)
    photo.resize((60, 40)).save(source / 'small.bmp')
    rgba = photo.convert('RGBA')
    rgba.save(source / 'alpha.png')
    deep = np.arange(600 * 400, dtype=np.uint16).reshape(400, 600)
    Image.fromarray(deep).save(source / 'deep.png')
    tifffile.imwrite(source / 'scene.tif', np.zeros((400, 600, 5), np.float32))
    np.save(source / 'array.npy', deep)
    (source / 'notes.txt').write_text('no image')

    counts = prepare_folder(str(source), str(tmp_path / 'small'), Settings(short_side=100))

    sizes = {}
    for path in list_images(str(tmp_path / 'small')):
        name = path.removeprefix(f'{tmp_path}/small/')
        if name.endswith(('.jpg', '.jpeg', '.JPG')):
            with Image.open(path) as image:
                assert image.format == 'JPEG' and image.getexif().get(0x0112, 1) == 1
                sizes[name] = (image.size, image.mode)
        else:
            assert (tmp_path / 'small' / name).read_bytes() == (source / name).read_bytes()
            sizes[name] = None
    assert sizes == {
        'class/turned.jpg': ((100, 150), 'RGB'),
        'class/photo.png.jpg': ((150, 100), 'RGB'),
        'grey.webp.jpg': ((150, 100), 'RGB'),  # WebP has no grey
        'print.jpeg': ((150, 100), 'RGB'),
        'small.JPG': ((60, 40), 'RGB'),
        'small.bmp.jpg': ((60, 40), 'RGB'),
        'alpha.png.jpg': ((150, 100), 'RGB'),
        'deep.png': None,
        'scene.tif': None,
        'array.npy': None,
    }
    assert (tmp_path / 'small/small.JPG').read_bytes() == (source / 'small.JPG').read_bytes()
    assert (counts['shrunk'], counts['copied'], counts['unreadable']) == (6, 4, 0)
    assert counts['bytes after'] == sum(os.path.getsize(path) for path in list_images(str(tmp_path / 'small')))


def test_grey_stays_one_channel(photo, tmp_path):
    photo.convert('L').save(tmp_path / 'grey.png')
    (tmp_path / 'small.jpg').write_bytes(shrink(tmp_path / 'grey.png', Settings(100), MAX_BYTES))
    with Image.open(tmp_path / 'small.jpg') as image:
        assert image.mode == 'L'


def test_resumes_where_it_was_stopped(image_folder, tmp_path):
    """What is there is not written again, a half-written file is, and nothing of it is taken for an image."""
    small = tmp_path / 'small'
    prepare_folder(str(image_folder), str(small), Settings(40))
    paths = list_images(str(small))
    before = {path: read_image(path) for path in paths}
    gone = Path(paths[3])
    gone.rename(gone.with_name(f'.{gone.name}.part'))
    gone.with_name(f'.{gone.name}.part').write_bytes(b'half')
    assert len(list_images(str(small))) == 11
    counts = prepare_folder(str(image_folder), str(small), Settings(40))
    assert (counts['done before'], counts['shrunk']) == (11, 1)
    assert list_images(str(small)) == paths and all(read_image(path).equal(before[path]) for path in paths)
    assert not list(small.rglob('*.part'))


def test_unreadable_files_are_listed(image_folder, tmp_path):
    (image_folder / 'part0/broken.jpg').write_bytes((image_folder / 'part0/00.jpg').read_bytes()[:300])
    (image_folder / 'empty.png').write_bytes(b'')
    (image_folder / 'garbage.npy').write_bytes(b'no array')
    (image_folder / 'garbage.tif').write_bytes(b'no image')
    printed = run(*TOOL, image_folder, tmp_path / 'small', '--short-side', 40, '--workers', 2)
    assert '12 shrunk' in printed and '4 unreadable' in printed and 'MiB' in printed
    listed = (tmp_path / 'small/unreadable.txt').read_text()
    unreadable = ('part0/broken.jpg', 'empty.png', 'garbage.npy', 'garbage.tif')
    assert all(f'{name}: ' in listed for name in unreadable) and listed.count('\n') == 4
    assert len(list_images(str(tmp_path / 'small'))) == 12
    for name in unreadable:
        (image_folder / name).unlink()
    run(*TOOL, image_folder, tmp_path / 'small', '--short-side', 40)
    assert not (tmp_path / 'small/unreadable.txt').exists()


def test_bad_arguments(image_folder, tmp_path):
    source, small = str(image_folder), str(tmp_path / 'small')
    assert 'short_side=0 must be a whole number of at least 1; 288 suits crops of 224 px' in run(
        *TOOL, source, small, '--short-side', 0, ok=False
    )
    for arguments, message in (
        ((source, f'{source}/small'), 'lies in source'),
        ((source, small, None, 0), 'workers=0 must be a whole number of at least 1; the number of threads'),
        ((str(tmp_path / 'nothing'), small), 'holds no image'),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_folder(*arguments)
    with pytest.raises(ValueError, match='quality=99 must be a whole number from 1 to 95; 90 is usual'):
        Settings(quality=99)
    assert not (tmp_path / 'small').exists()
    prepare_folder(source, small, Settings(40))
    with pytest.raises(ValueError, match='choose another folder'):
        prepare_folder(source, small)
    for name in ('a.png', 'a.png.jpg'):
        (image_folder / name).write_bytes((image_folder / 'part0/00.jpg').read_bytes())
    with pytest.raises(ValueError, match=r'2 images of .* would become a.png.jpg'):
        prepare_folder(source, str(tmp_path / 'other'))
