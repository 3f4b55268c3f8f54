"""Tar files of WebDataset's layout."""

import json
import sys
import tarfile

import pytest

from helpers.commands import run
from helpers.paths import ROOT
from simmim_plugin.datasets.image_folder import list_images
from simmim_plugin.datasets.tar_shards import write_shards


def contents(target):
    """Path within the folder -> bytes, of all shards; and the numbers of images of each."""
    found, counts = {}, []
    for file in sorted(target.glob('*.tar')):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
            counts.append(len(members) // 2)
            for image, name in zip(members[::2], members[1::2]):
                assert image.name[:9] == name.name[:9] and name.name.endswith('.txt')
                found[tar.extractfile(name).read().decode()] = tar.extractfile(image).read()
    return found, counts


def test_every_image_is_in_one_shard(image_folder, tmp_path):
    size = sum(p.stat().st_size for p in image_folder.rglob('*.jpg'))
    index = write_shards(image_folder, tmp_path / 'shards', 0.4 * size / 1e6)
    found, counts = contents(tmp_path / 'shards')
    assert found == {str(p.relative_to(image_folder)): p.read_bytes() for p in image_folder.rglob('*.jpg')}
    assert counts == [shard['images'] for shard in index['shards']] and len(counts) == 3
    assert list(found) != sorted(found)  # mixed
    assert json.loads((tmp_path / 'shards/shards.json').read_text()) == index
    assert not list((tmp_path / 'shards').glob('.*'))


def test_resumes_and_refuses_other_images(image_folder, tmp_path):
    write_shards(image_folder, tmp_path / 'shards', 0.003)
    before = {file.name: file.read_bytes() for file in (tmp_path / 'shards').glob('*.tar')}
    first, *others = sorted((tmp_path / 'shards').glob('*.tar'))
    first.unlink()
    times = [file.stat().st_mtime_ns for file in others]
    write_shards(image_folder, tmp_path / 'shards', 0.003)
    assert {file.name: file.read_bytes() for file in (tmp_path / 'shards').glob('*.tar')} == before
    assert [file.stat().st_mtime_ns for file in others] == times
    with pytest.raises(ValueError, match='other images, or of another size'):
        write_shards(image_folder, tmp_path / 'shards', 1)


def test_bad_arguments_are_named(image_folder, tmp_path):
    with pytest.raises(ValueError, match='megabytes=0 must be a number above 0; 256 is usual'):
        write_shards(image_folder, tmp_path / 'shards', 0)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no image'):
        write_shards(tmp_path / 'empty', tmp_path / 'shards', 1)


def test_a_file_larger_than_any_image_is_named(image_folder, tmp_path):
    with open(image_folder / 'huge.jpg', 'wb') as file:
        file.truncate(2**40)  # takes no disk
    with pytest.raises(ValueError, match=r'huge.jpg: a file of 1,099,511,627,776 bytes, more than 536,870,912'):
        write_shards(image_folder, tmp_path / 'shards', 1)


def test_tool(image_folder, tmp_path):
    output = run(
        sys.executable, ROOT / 'tools/prepare_dataset.py', image_folder, tmp_path / 'small', '--short-side', '32',
        '--shards-mb', '1',
    )  # fmt: skip
    assert '12 images in 1 tar files' in output
    assert len(list_images(str(tmp_path / 'small'))) == 12 == len(contents(tmp_path / 'small/shards')[0])
