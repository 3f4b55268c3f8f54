"""The augmentation of a sample depends only on its number in the run."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from simmim_plugin import ImageFolder
from simmim_plugin.datasets import sampling
from simmim_plugin.datasets.sampling import NumberedSampler, number_samples
from simmim_plugin.utils.random_state import seed_everything

pytestmark = pytest.mark.core

PIPELINE = [
    dict(type='simmim_plugin.LoadImage'),
    dict(type='simmim_plugin.RandomResizedCrop', size=64),
    dict(type='simmim_plugin.SimMIMMaskGenerator', mask_patch_size=16, model_patch_size=8),
    dict(type='simmim_plugin.PackSimMIMInputs'),
]


def epoch(folder, monkeypatch, batch, workers=0, rank=0, world=1, skipped=0, first=0):
    """Path -> (image, mask) of an epoch of a process."""
    monkeypatch.setattr(sampling, 'get_dist_info', lambda: (rank, world))
    dataset = ImageFolder(str(folder), PIPELINE, serialize_data=False)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(3)).tolist()
    loader = DataLoader(dataset, batch, sampler=order[rank::world], num_workers=workers, collate_fn=default_collate)
    sampler = number_samples(loader, seed=7)
    assert number_samples(loader, seed=9) is sampler  # the first one stays
    sampler.next_iteration = first
    sampler.skip_batches(skipped)
    found = {}
    for data in loader:
        for path, *tensors in zip(data['img_path'], data['inputs'], data['mask']):
            assert path not in found
            found[path] = tensors
    return found


def same(one, two):
    assert one.keys() == two.keys()
    for path in one:
        assert all(torch.equal(a, b) for a, b in zip(one[path], two[path])), path


@pytest.fixture
def full_epoch(image_folder, monkeypatch):
    return epoch(image_folder, monkeypatch, 4)


@pytest.mark.parametrize('workers', [1, 3])
def test_workers_change_nothing(image_folder, monkeypatch, full_epoch, workers):
    torch.manual_seed(workers)
    same(epoch(image_folder, monkeypatch, 4, workers), full_epoch)


@pytest.mark.parametrize('world', [2, 4])
def test_ranks_share_the_samples_and_change_nothing(image_folder, monkeypatch, full_epoch, world):
    parts = [epoch(image_folder, monkeypatch, 4 // world, rank=rank, world=world) for rank in range(world)]
    joined = {path: sample for part in parts for path, sample in part.items()}
    assert len(joined) == sum(map(len, parts)) == 12  # each image once
    same(joined, full_epoch)


def test_masks_differ_between_samples_epochs_and_seeds(image_folder, monkeypatch, full_epoch):
    masks = [tuple(mask.flatten().tolist()) for _, mask in full_epoch.values()]
    assert len(set(masks)) == len(masks)
    later = epoch(image_folder, monkeypatch, 4, first=3)
    assert all(not torch.equal(later[path][1], full_epoch[path][1]) for path in full_epoch)


def test_an_epoch_resumes_where_it_was_interrupted(image_folder, monkeypatch, full_epoch):
    rest = epoch(image_folder, monkeypatch, 4, first=1, skipped=1)
    assert len(rest) == 8
    same(rest, {path: full_epoch[path] for path in rest})


def test_numbers_continue_in_the_next_epoch():
    loader = DataLoader(range(6), 2, collate_fn=list)
    sampler = NumberedSampler(range(6), loader, seed=1)
    sampler.next_iteration = 4
    sampler.skip_batches(1)  # iteration 4 is the second of its epoch
    keys = [(index.iteration, index.key) for _ in range(2) for index in sampler]
    assert keys == [(i // 2, (1, i)) for i in range(8, 12)] + [(i // 2, (1, i)) for i in range(12, 18)]


def test_neighbouring_keys_draw_independent_numbers():
    draws = (random.random, np.random.rand, lambda: torch.rand(1).item())
    drawn = []
    for number in range(2000):
        seed_everything(0, 0, number)
        drawn.append([draw() for draw in draws for _ in range(2)])
    streams = np.array(drawn).T
    assert all(len(set(stream)) == 2000 for stream in streams[:4]) and len(set(streams[4])) > 1990  # 24 bits
    for stream in streams:
        assert abs(stream.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
        assert abs(np.corrcoef(stream[1:], stream[:-1])[0, 1]) < 4 / 2000**0.5
    between = np.corrcoef(streams)[np.triu_indices(6, 1)]
    assert np.abs(between).max() < 4 / 2000**0.5


def test_a_key_may_be_of_any_integers():
    drawn = []
    for number in (3, np.int64(3), torch.tensor(3)):
        seed_everything(0, number)
        drawn.append(random.random())
    assert len(set(drawn)) == 1
