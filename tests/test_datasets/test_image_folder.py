import logging
import os
import shutil

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from simmim_plugin import ImageFolder, LoadImage, PackagePhotos, TarShards
from simmim_plugin.datasets.image_folder import TooManyBadImagesError, list_images


def folder_of(source, target, good: int, bad: int):
    """A flat folder with copies of a good image, and truncated ones in between."""
    target.mkdir()
    data = next(source.rglob('*.jpg')).read_bytes()
    for i in range(good):
        (target / f'{i:03}_good.jpg').write_bytes(data)
    for i in range(bad):
        (target / f'{i:03}_bad.jpg').write_bytes(data[: len(data) // 2])
    return str(target)


def test_lists_all_images_also_below_links_but_not_loops(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / 'elsewhere')
    os.symlink(tmp_path / 'elsewhere', image_folder / 'link')
    os.symlink(image_folder, image_folder / 'part0' / 'loop')
    (image_folder / 'notes.txt').write_text('no image')
    os.rename(image_folder / 'part0' / '00.jpg', image_folder / 'part0' / '00.JPG')
    paths = list_images(str(image_folder))
    assert len(paths) == 24 and paths == sorted(paths)
    dataset = ImageFolder(str(image_folder), [LoadImage()])
    assert len(dataset) == 24 and dataset[0]['img'].shape == (3, 72, 80)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_root='.*nowhere' is not a folder .*--cfg-options data_root="):
        ImageFolder(str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match=r'holds no file ending in \.jpg'):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_is_skipped_counted_and_named(image_folder, tmp_path, workers):
    handler = logging.FileHandler(tmp_path / 'log.txt')
    MMLogger.get_current_instance().addHandler(handler)
    dataset = ImageFolder(folder_of(image_folder, tmp_path / 'few', 39, 1), [LoadImage()])
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, sampler=DefaultSampler(dataset, shuffle=False))
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 10 and all(len(batch['img']) == 4 for batch in batches)
    assert [os.path.basename(path) for path in dataset.bad_images()] == ['000_bad.jpg']
    MMLogger.get_current_instance().removeHandler(handler)
    said = (tmp_path / 'log.txt').read_text()
    assert said.count('000_bad.jpg') == 1 and 'skipped (1 of 40' in said and 'truncated' in said


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_bad_images_stop_with_their_list(image_folder, tmp_path, workers):
    dataset = ImageFolder(folder_of(image_folder, tmp_path / 'many', 36, 4), [LoadImage()])
    with pytest.raises(
        TooManyBadImagesError, match=r'of \d+ images tried cannot be read, more than max_bad_ratio=0.05'
    ) as e:
        list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert str(e.value).count('_bad.jpg') >= 3
    tolerant = ImageFolder(str(tmp_path / 'many'), [LoadImage()], max_bad_ratio=0.1)
    assert len(list(DataLoader(tolerant, batch_size=4, num_workers=workers))) == 10


def test_no_image_that_decodes(image_folder, tmp_path):
    dataset = ImageFolder(folder_of(image_folder, tmp_path / 'none', 0, 30), [LoadImage()])
    with pytest.raises(TooManyBadImagesError, match='2 of 2 images tried'):
        dataset[0]


def test_an_early_bad_image_of_a_large_folder_does_not_stop_it(image_folder, tmp_path):
    dataset = ImageFolder(folder_of(image_folder, tmp_path / 'large', 100, 5), [LoadImage()])
    assert all(dataset[i]['img'].shape == (3, 72, 80) for i in range(20))


def test_mask_and_crops_are_reproducible_with_workers(image_folder):
    def batches(seed: int):
        loader = Runner.build_dataloader(
            dict(
                batch_size=4,
                num_workers=2,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='simmim_plugin.ImageFolder',
                    data_root=str(image_folder),
                    pipeline=[
                        dict(type='simmim_plugin.LoadImage'),
                        dict(type='mmpretrain.torchvision/RandomResizedCrop', size=64, antialias=True),
                        dict(type='simmim_plugin.SimMIMMaskGenerator'),
                        dict(type='simmim_plugin.PackSimMIMInputs'),
                    ],
                ),
            ),
            seed=seed,
        )
        return list(loader)

    first, again, other = batches(1), batches(1), batches(2)
    assert first[0]['inputs'].shape == (4, 3, 64, 64) and first[0]['mask'].shape == (4, 4, 4)
    for a, b in zip(first, again):
        assert (a['inputs'] == b['inputs']).all() and (a['mask'] == b['mask']).all()
    assert any((a['mask'] != b['mask']).any() for a, b in zip(first, other))


def test_package_photos():
    pytest.importorskip('skimage')
    pytest.importorskip('sklearn')
    dataset = PackagePhotos([LoadImage()])
    assert len(dataset) == 9
    assert all(sample['img'].shape[0] == 3 and min(sample['img'].shape[1:]) >= 300 for sample in dataset)


def names(dataset):
    return [os.path.relpath(dataset.get_data_info(i)['img_path'], dataset.data_root) for i in range(len(dataset))]


def test_a_list_of_files_and_a_subfolder_are_honoured(image_folder):
    """A user of other toolboxes would otherwise pretrain on the validation images."""
    (image_folder / 'train.txt').write_text('part0/00.jpg 3\npart1/01.jpg 0\n\n')
    assert names(ImageFolder(str(image_folder), ann_file='train.txt')) == ['part0/00.jpg', 'part1/01.jpg']
    below = ImageFolder(str(image_folder), data_prefix=dict(img_path='part1'))
    assert names(below) == sorted(f'part1/{path.name}' for path in (image_folder / 'part1').glob('*.jpg'))
    (image_folder / 'train.txt').write_text('01.jpg')
    assert names(ImageFolder(str(image_folder), ann_file='train.txt', data_prefix='part1')) == ['part1/01.jpg']
    (image_folder / 'train.txt').write_text('{"data_list": []}')
    with pytest.raises(ValueError, match=r'train.txt., line 1: .* is not the path of an image, such as a/b.jpg'):
        ImageFolder(str(image_folder), ann_file='train.txt')
    with pytest.raises(FileNotFoundError, match=r"ann_file '.*val.txt' does not exist"):
        ImageFolder(str(image_folder), ann_file='val.txt')


def test_several_folders_in_their_order(image_folder):
    parts = [str(image_folder / name) for name in ('part1', 'part0')]
    several, single = ImageFolder(parts), [ImageFolder(part) for part in parts]
    assert len(several) == 12 == sum(map(len, single))
    assert several.get_data_info(0)['img_path'].startswith(parts[0])
    with pytest.raises(FileNotFoundError, match=r"data_root='.*nowhere' is not a folder"):
        ImageFolder([parts[0], '/nowhere'])
    with pytest.raises(ValueError, match=r'data_root=\[\] must be the path of a folder, or a list of them'):
        ImageFolder([])


@pytest.mark.parametrize(
    ('kind', 'arguments', 'error'),
    [
        (ImageFolder, dict(split='train'), "unexpected keyword argument 'split'"),
        (ImageFolder, dict(filter_cfg=dict(min_size=8)), r'ImageFolder does not use filter_cfg='),
        (ImageFolder, dict(data_prefix=dict(img='train')), r'data_prefix=.* must be a dict of img_path \(optional\)'),
        (TarShards, dict(ann_file='train.txt'), 'TarShards does not use ann_file=.train.txt.; remove it'),
    ],
)
def test_arguments_that_would_do_nothing_are_errors(image_folder, kind, arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        kind(str(image_folder), **arguments)


HIDDEN = ('.ipynb_checkpoints', '@eaDir', '__MACOSX')


def test_hidden_folders_are_not_listed(image_folder):
    for name in HIDDEN:
        shutil.copytree(image_folder / 'part0', image_folder / 'part0' / name)
    assert len(list_images(str(image_folder))) == 12
