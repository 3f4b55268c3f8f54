"""Training from tar files: the same images as from the folder, each once, and damaged shards named."""

import gzip
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from helpers.commands import train
from simmim_plugin import ImageFolder, TarShards
from simmim_plugin.datasets import tar_shards
from simmim_plugin.datasets.tar_shards import write_shards

PIPELINE = [dict(type='simmim_plugin.LoadImage', defer=True), dict(type='simmim_plugin.RandomResizedCrop', size=64)]


@pytest.fixture
def shards(image_folder, tmp_path):
    write_shards(image_folder, tmp_path / 'shards', 0.003)
    return tmp_path / 'shards'


def images(dataset):
    """Content of the file -> the image."""
    found = {}
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        data = info.get('img_bytes') or Path(info['img_path']).read_bytes()
        found[data] = dataset[i]['img']
    return found


def test_the_same_images_as_in_the_folder(image_folder, shards, monkeypatch):
    monkeypatch.setattr(tar_shards, 'OPEN_FILES', 2)
    pipeline = [dict(type='simmim_plugin.LoadImage')]
    packed, loose = (images(kind(str(folder), pipeline))
                     for kind, folder in ((TarShards, shards), (ImageFolder, image_folder)))  # fmt: skip
    assert len(list(shards.glob('*.tar'))) > 3 and len(packed) == 12 and packed.keys() == loose.keys()
    assert all(torch.equal(packed[data], loose[data]) for data in loose)


def test_is_pickled_without_its_open_files(shards):
    dataset = TarShards(str(shards), PIPELINE)
    dataset[0]
    assert dataset._open
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._open is None and copy[0]['img'].shape == (3, 64, 64)


def test_a_damaged_image_is_counted_and_replaced(shards):
    dataset = TarShards(str(shards), PIPELINE, max_bad_ratio=0.5)
    info = dataset.get_data_info(3)
    (start,) = (i for i in range(12) if dataset.get_data_info(i)['img_path'] == info['img_path'])
    place = super(TarShards, dataset).get_data_info(start)
    with open(place['shard'], 'r+b') as file:
        file.seek(place['offset'])
        file.write(b'\0' * place['size'])
    assert dataset[3]['img'].shape == (3, 64, 64)
    assert dataset.bad_images() == [info['img_path']]


@pytest.mark.parametrize('fault', ['cut', 'cut between images', 'gone', 'compressed', 'empty'])
def test_a_broken_shard_is_named(shards, fault):
    second = sorted(shards.glob('*.tar'))[1]
    data = second.read_bytes()
    message = f'{second} is damaged, or not an uncompressed tar file'
    if fault == 'cut':
        second.write_bytes(data[:1500])
    elif fault == 'cut between images':
        second.write_bytes(bytes(1024))
        message = f'{second} holds 0 images, but shards.json says'
    elif fault == 'gone':
        second.unlink()
        message = f'shards.json lists {second.name}, which do not exist'
    elif fault == 'compressed':
        second.write_bytes(gzip.compress(data))
    else:
        second.write_bytes(b'')
    with pytest.raises(ValueError, match=message):
        TarShards(str(shards))


@pytest.fixture
def plain(image_folder, tmp_path):
    """A tar file of three images as others write it, without shards.json; its bytes, and the offsets of the headers."""
    (tmp_path / 'plain').mkdir()
    path = tmp_path / 'plain/a.tar'
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for i, image in enumerate(sorted(image_folder.rglob('*.jpg'))[:3]):
            tar.add(image, f'{i}.jpg')
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar.getmembers()]
    return path, path.read_bytes(), offsets


def test_a_damaged_tar_without_an_index_is_named_and_counted(plain):
    path, content, (_, second, third) = plain
    assert len(TarShards(str(path.parent))) == 3
    flipped = bytearray(content)
    flipped[second + 20] ^= 0xFF
    zeroed = bytearray(content)
    zeroed[second : second + 512] = bytes(512)
    for damaged, count, place in ((flipped, 1, second), (zeroed, 1, second), (content[:third], 2, third),
                                  (content[: third + 700], 2, None), (content + content, 3, None)):  # fmt: skip
        path.write_bytes(damaged)
        where = '' if place is None else f' at byte {place}'
        message = rf'a.tar is damaged, .*(no end of archive behind its first {count} files,{where}|unexpected end)'
        with pytest.raises(ValueError, match=message):
            TarShards(str(path.parent))


def test_hidden_members_are_not_listed(tmp_path):
    names = ('./a/0.jpg', 'b..c/1.jpg', '__MACOSX/._a.jpg', 'a/.thumbs/2.jpg', './@eaDir/3.jpg', '._4.jpg')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    found = [info['img_path'] for info in TarShards(str(tmp_path)).load_data_list()]
    assert found == [f'{tmp_path}/a.tar/{name}' for name in names[:2]]


def test_a_sparse_member_is_named(plain):
    path, *_ = plain
    header = tarfile.TarInfo('0.jpg')
    header.size, header.type = 512, tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b'%011o\0%011o\0' % (0, 512)  # a piece of 512 bytes
    block[483:495] = b'%011o\0' % (2**33 - 1)  # the size that it claims
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    path.write_bytes(bytes(block) + bytes(512) + bytes(10240))
    with pytest.raises(ValueError, match=r'a.tar is damaged, or .*\(0.jpg is a sparse file\)'):
        TarShards(str(path.parent))


def test_a_member_larger_than_any_image_is_a_bad_image(shards, monkeypatch):
    monkeypatch.setattr(tar_shards, 'MAX_BYTES', 100)
    dataset = TarShards(str(shards), PIPELINE)
    with pytest.raises(RuntimeError, match=r'cannot be read, .* a file of [\d,]+ bytes in it, more than 100'):
        dataset[0]


@pytest.mark.parametrize('content', ['{"shards": [{}]}', '{"shards": 3}', '{"shards": [{"file": "a", "images": "x"}]}',
                                     '{"shards": [', '[]', '{"shards": [[]]}'])  # fmt: skip
def test_a_damaged_index_is_named(shards, content):
    (shards / 'shards.json').write_text(content)
    with pytest.raises(ValueError, match=r"shards.json' (is damaged|holds a list)"):
        TarShards(str(shards))


def test_folders_without_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_root='/nowhere' is not a folder"):
        TarShards('/nowhere')
    with pytest.raises(ValueError, match=r'holds no \*.tar file; write some with `simmim prepare'):
        TarShards(str(tmp_path))


@pytest.mark.slow
def test_training_from_shards(shards, tmp_path):
    log = train(shards, tmp_path / 'work', 'train_dataloader.dataset.type=TarShards', 'train_cfg.max_epochs=1')
    assert '3 iterations per epoch' in log and (tmp_path / 'work/epoch_1.pth').exists()
