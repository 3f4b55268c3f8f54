"""Ratios that change over the iterations, with MMEngine's loops and PyTorch's data loaders."""

import copy
import math
import pickle

import pytest
import torch
from mmengine.dataset import ConcatDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from helpers.mask_ramp import (
    SIZE,
    Runner,
    _simultaneous,
    counts,
    data_loader,
    expected,
    folder,
    ratio_at,
)
from simmim_plugin import ImageFolder, LoadImage, MaskRatioHook, SimMIMMaskGenerator
from simmim_plugin.datasets.sampling import NumberedIndex
from simmim_plugin.datasets.transforms.masking import Ramp

RAMP = dict(start=0.1, end=0.9, begin=3, until=15)


# The ramp


@pytest.mark.parametrize(
    ('schedule', 'values'),
    [
        ('linear', {0: 0.2, 10: 0.2, 15: 0.3, 20: 0.4, 25: 0.5, 30: 0.6, 99: 0.6}),
        # (1 - cos(pi / 4)) / 2 = 0.1464466 of the way after a quarter of the iterations
        ('cosine', {0: 0.2, 10: 0.2, 15: 0.25857864, 20: 0.4, 25: 0.54142136, 30: 0.6, 99: 0.6}),
    ],
)
def test_ramp_by_hand(schedule, values):
    up, down = Ramp(0.2, 0.6, 10, 30, schedule), Ramp(0.6, 0.2, 10, 30, schedule)
    for iteration, value in values.items():
        assert up(iteration) == pytest.approx(value, abs=1e-8)
        assert down(iteration) == pytest.approx(0.8 - value, abs=1e-8)


def test_ends_of_a_ramp_at_zero_and_one_are_exact():
    for schedule in ('linear', 'cosine'):
        for percent in range(101):
            assert Ramp(percent / 100, 1.0, 0, 7, schedule)(7) == 1
            assert Ramp(percent / 100, 0.0, 0, 7, schedule)(7) == 0


# The iteration on its way to the mask


def test_numbered_index_keeps_its_iteration():
    index = NumberedIndex(23, 7)
    assert index == 23 and isinstance(index, int) and list(range(30))[index] == 23
    for derived, value in (
        (index % 5, 3),
        (index - 20, 3),
        (pickle.loads(pickle.dumps(index)), 23),
        (pickle.loads(pickle.dumps([index]))[0], 23),
        (copy.deepcopy(index), 23),
    ):
        assert (type(derived), derived, derived.iteration) == (NumberedIndex, value, 7)


def test_sample_of_a_numbered_index_has_the_ratio_of_its_iteration(image_folder):
    dataset = folder(image_folder)
    hook = MaskRatioHook(**RAMP)
    hook.before_train(Runner(data_loader(dataset), hook, max_epochs=3))
    for iteration in (9, 0, 12, 100):
        sample = dataset[NumberedIndex(5, iteration)]
        assert [sample['mask'].sum()] == expected(ratio_at(iteration), 1) and sample['iteration'] == iteration
        assert 'iteration' not in dataset[5] and dataset[5]['mask'].sum() == 45  # the generator's own ratio


def test_generator_with_a_ramp_goes_to_spawned_workers(image_folder):
    dataset = folder(image_folder)
    hook = MaskRatioHook(**RAMP)
    hook.before_train(Runner(data_loader(dataset), hook, max_epochs=3))
    generator = pickle.loads(pickle.dumps(dataset.pipeline.transforms[0]))
    assert [generator({'iteration': 9})['mask'].sum()] == expected(0.5, 1)
    assert [generator({'iteration': 4})['mask'].sum()] == expected(0.1 + 0.8 / 12, 1)


def test_replacement_of_a_broken_image_keeps_the_iteration(image_folder):
    (image_folder / 'a_broken.jpg').write_bytes(b'nothing')
    generator = SimMIMMaskGenerator(0.5, 8, 8)
    dataset = ImageFolder(str(image_folder), [LoadImage(), generator], max_bad_ratio=1)
    generator.ramps['mask_ratio'] = Ramp(0.1, 0.9, 3, 15, 'linear')
    assert dataset.get_data_info(0)['img_path'].endswith('a_broken.jpg')
    for iteration in (4, 11):
        sample = dataset[NumberedIndex(0, iteration)]
        assert not sample['img_path'].endswith('a_broken.jpg')
        assert [sample['mask'].sum()] == expected(ratio_at(iteration), 1)
    assert dataset[0]['mask'].sum() == 45  # and a plain index afterwards has none


# Training


@pytest.mark.parametrize(
    ('workers', 'persistent', 'batch_size', 'drop_last'),
    [(2, True, 2, True), (2, False, 2, True), (0, False, 2, True), (2, True, 5, True), (2, True, 5, False)],
)
def test_every_batch_of_an_epoch_based_run(image_folder, workers, persistent, batch_size, drop_last):
    per_epoch = {2: 6, 5: 2 if drop_last else 3}[batch_size]
    sizes = [2 if not drop_last and batch_size == 5 and i % 3 == 2 else batch_size for i in range(18)]

    def batches(resume_from):
        loader = data_loader(folder(image_folder), DefaultSampler, workers, persistent, batch_size, drop_last)
        hook = MaskRatioHook(**RAMP)
        epochs = 18 // per_epoch
        runner = Runner(loader, DistSamplerSeedHook(), hook, max_epochs=epochs, resume_from=resume_from)
        seen = runner.train()
        assert runner.logged('mask_ratio') == pytest.approx([ratio_at(i) for i in range(resume_from, 18)])
        return seen

    straight, resumed = batches(0), batches(2 * per_epoch)
    assert len(straight) == 18 and len(resumed) == 18 - 2 * per_epoch
    for iteration, batch in enumerate(straight):
        assert batch['iteration'].tolist() == [iteration] * sizes[iteration]
        assert counts(batch) == expected(ratio_at(iteration), sizes[iteration])
    for batch, as_before in zip(resumed, straight[2 * per_epoch :]):
        assert counts(batch) == counts(as_before) and torch.equal(batch['sample_idx'], as_before['sample_idx'])


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_every_batch_of_an_iteration_based_run(image_folder, sampler, workers):
    def batches(resume_from, **kwargs):
        hook = MaskRatioHook(**RAMP, schedule='cosine')
        loader = data_loader(folder(image_folder), sampler, workers)
        runner = Runner(
            loader,
            DistSamplerSeedHook(),
            hook,
            loop=IterBasedTrainLoop,
            max_iters=18,
            resume_from=resume_from,
            **kwargs,
        )
        seen = runner.train()
        assert len(seen) == 18 - resume_from
        for iteration, batch in enumerate(seen, resume_from):
            progress = (1 - math.cos(math.pi * min(max((iteration - 3) / 12, 0), 1))) / 2
            assert counts(batch) == expected(0.1 + 0.8 * progress) and batch['iteration'].tolist() == [iteration] * 2
            assert runner.logged('mask_ratio')[iteration - resume_from] == pytest.approx(0.1 + 0.8 * progress)
        return seen

    straight = batches(0)
    for resume_from in (4, 6, 8):  # within an epoch, between two, in the second
        resumed = batches(resume_from)
        for batch, as_before in zip(resumed, straight[resume_from:]):
            assert torch.equal(batch['sample_idx'], as_before['sample_idx'])
    batches(8, fast_forward_on_resume=True)


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_that_started_with_the_loop_are_named(image_folder, workers):
    """MMEngine up to 0.10.7 (the extra `openmmlab`) makes the iterator with the loop, before `before_train`."""
    runner = Runner(
        data_loader(folder(image_folder), InfiniteSampler, workers),
        MaskRatioHook(**RAMP),
        loop=IterBasedTrainLoop,
        max_iters=18,
    )
    runner.train_loop.dataloader_iterator._ensure_iterator()
    if workers:  # they draw without the ramp already
        with pytest.raises(
            ValueError, match=r'starts the 2 workers of IterBasedTrainLoop before its hooks; .*num_workers=0'
        ):
            runner.call_hook('before_train')
        del runner.train_loop  # see Runner.train
        return
    assert [counts(batch) for batch in runner.train()] == [expected(ratio_at(i)) for i in range(18)]


@pytest.mark.parametrize('nested', ['repeat', 'concat', 'both'])
def test_repeated_and_joined_data(image_folder, nested):
    first, second = folder(image_folder / 'part0'), folder(image_folder / 'part1', 0.3)
    if nested == 'repeat':
        dataset = RepeatDataset(folder(image_folder), 3)
    else:
        dataset = ConcatDataset([first, second])
        if nested == 'both':
            generator = dict(
                type='simmim_plugin.SimMIMMaskGenerator', mask_patch_size=8, model_patch_size=8, input_size=SIZE
            )
            config = dict(type='simmim_plugin.ImageFolder', data_root=str(image_folder / 'part1'), pipeline=[generator])
            dataset = RepeatDataset(dict(type='ConcatDataset', datasets=[config, copy.deepcopy(config)]), 2)
    seen = Runner(data_loader(dataset), MaskRatioHook(**RAMP), max_epochs=2).train()
    assert len(seen) == {'repeat': 36, 'concat': 12, 'both': 24}[nested]
    for iteration, batch in enumerate(seen):
        assert counts(batch) == expected(ratio_at(iteration))


def test_batch_sampler_of_the_config_reshuffles_each_epoch(image_folder):
    def orders(*hooks):
        dataset = folder(image_folder)
        batches = BatchSampler(DefaultSampler(dataset, seed=0), 2, drop_last=True)
        seen = Runner(DataLoader(dataset, batch_sampler=batches), DistSamplerSeedHook(), *hooks, max_epochs=2).train()
        assert all(counts(batch) == expected(ratio_at(i)) for i, batch in enumerate(seen)) or not hooks
        return [batch['sample_idx'].tolist() for batch in seen]

    assert orders(MaskRatioHook(**RAMP)) == orders()


class OwnBatchSampler(BatchSampler):
    """MMEngine does not skip samples inside unknown batch samplers; it draws them again."""


@pytest.mark.parametrize('batches', [BatchSampler, OwnBatchSampler])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_batch_sampler_of_the_config_resumes_at_its_iteration(image_folder, sampler, batches):
    dataset = folder(image_folder)
    loader = DataLoader(dataset, batch_sampler=batches(sampler(dataset, seed=0), 2, drop_last=True))
    runner = Runner(loader, MaskRatioHook(**RAMP), loop=IterBasedTrainLoop, max_iters=12, resume_from=5)
    assert [counts(batch) for batch in runner.train()] == [expected(ratio_at(i)) for i in range(5, 12)]


def test_local_and_global_ratio_each_have_a_ramp_and_a_name_in_the_log(image_folder):
    masks = dict(local=dict(ratio=0.75, unit=8), global_=dict(ratio=0.1, unit=16))
    loader = data_loader(_simultaneous(image_folder, masks))
    hooks = (
        MaskRatioHook(0.2, argument='local.ratio'),  # up to the generator's own, over all 18 iterations
        MaskRatioHook(0.5, 0.3, argument='global_.ratio', begin=2, until=4, schedule='cosine'),
    )
    runner = Runner(loader, *hooks, max_epochs=3)
    seen = runner.train()
    local = [0.2 + 0.55 * i / 18 for i in range(18)]
    coarse = [0.5, 0.5, 0.5, 0.4] + [0.3] * 14
    assert runner.logged('local_ratio') == pytest.approx(local)
    assert runner.logged('global_ratio') == pytest.approx(coarse)
    for batch, first, second in zip(seen, local, coarse):
        assert counts(batch, 'mask_local') == expected(first)
        units = batch['mask_global'][:, ::2, ::2]  # 5 x 5 units of 2 x 2 patches, the lowest ones cut
        assert units.sum((1, 2)).tolist() == expected(second, 2, 25)
        assert torch.equal(batch['mask'], batch['mask_local'] | batch['mask_global'])


def test_ramped_ratio_is_adapted_to_the_size(image_folder):
    # 90 tokens, a reference of 36 x 40 px: keep' = keep * sqrt(22.5 / 90) = keep / 2
    loader = data_loader(folder(image_folder, adapt=dict(reference=(36, 40), alpha=0.5)), workers=0)
    seen = Runner(loader, MaskRatioHook(**RAMP), max_epochs=3).train()
    for iteration, batch in enumerate(seen):
        assert counts(batch) == expected(1 - (1 - ratio_at(iteration)) / 2)
