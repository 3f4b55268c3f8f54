"""Image sizes that change during training, with MMEngine's loops, PyTorch's data loaders and whole runs."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import IterBasedTrainLoop
from torch._dynamo.utils import counters
from torch.utils.data import Subset

from helpers.commands import SMALL, TOOLS, run
from helpers.mask_ramp import Runner, counts, data_loader
from helpers.models import TINY
from helpers.paths import ROOT
from helpers.same import same
from simmim_plugin import (
    CompileHook,
    ImageFolder,
    ImageSizeHook,
    LoadImage,
    MaskRatioHook,
    PackSimMIMInputs,
    RandomResizedCrop,
    ReconstructionHook,
    SimMIM,
    SimMIMMaskGenerator,
)
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.datasets.transforms.crop import SizeSteps
from simmim_plugin.models.layers.relative_position import resize_table

SIZES = {0: 32, 1: (48, 32), 2: 64}
# Units of 16 px in these: 2 x 2, 3 x 2 and 4 x 4, of which ceil(0.6 n) are hidden: 3, 4 and 10, of 4 patches each.
HIDDEN = {(32, 32): 12, (48, 32): 16, (64, 64): 40}


def folder(path, *transforms, masks=None) -> ImageFolder:
    masks = masks or SimMIMMaskGenerator(0.6, 16, 8)
    return ImageFolder(
        str(path), [LoadImage(defer=True), RandomResizedCrop(40), masks, PackSimMIMInputs(), *transforms]
    )


def model(**changes) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(backbone={**TINY, 'img_size': 32, 'patch_size': 8, **changes})


def check(batches, size_of) -> None:
    for iteration, batch in enumerate(batches):
        size = size_of(iteration)
        assert batch['inputs'].shape == (2, 3, *size), iteration
        assert batch['mask'].shape == (2, size[0] // 8, size[1] // 8) and counts(batch) == [HIDDEN[size]] * 2


def by_epoch(iteration):  # 12 images in batches of 2: 6 iterations per epoch
    return [(32, 32), (48, 32), (64, 64)][min(iteration // 6, 2)]


def by_iteration(iteration):
    return (32, 32) if iteration < 4 else (48, 32) if iteration < 5 else (64, 64)


@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, True), (2, False)])
def test_every_batch_of_an_epoch_based_run(image_folder, workers, persistent):
    def batches(resume_from):
        loader = data_loader(folder(image_folder), DefaultSampler, workers, persistent)
        hooks = (DistSamplerSeedHook(), ImageSizeHook(SIZES))
        return Runner(loader, *hooks, max_epochs=4, resume_from=resume_from).train()

    check(batches(0), by_epoch)
    check(batches(12), lambda i: by_epoch(i + 12))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
def test_every_batch_of_an_iteration_based_run(image_folder, sampler, workers):
    def batches(resume_from):
        loader = data_loader(folder(image_folder), sampler, workers)
        hook = ImageSizeHook({4: [48, 32], 0: 32, 5: 64}, by_epoch=False)
        return Runner(loader, hook, loop=IterBasedTrainLoop, max_iters=9, resume_from=resume_from).train()

    check(batches(0), by_iteration)
    for resume_from in (3, 4, 5):  # before, at and after a change
        check(batches(resume_from), lambda i, start=resume_from: by_iteration(i + start))


def test_fixed_images_keep_the_size_of_the_crop(image_folder):
    loader = data_loader(folder(image_folder), workers=0)
    hook = ImageSizeHook(SIZES)
    runner = Runner(loader, hook, max_epochs=3, model=model())
    hook.before_train(runner)
    drawn = ReconstructionHook(num_images=2, num_measured=3)
    drawn._draw(runner)
    assert drawn.batch['inputs'].shape == (3, 3, 40, 40)
    assert copy.deepcopy(loader.dataset)[0]['inputs'].shape == (3, 40, 40)


def test_model_interpolates_its_table_and_gets_gradients_at_each_size():
    """The features are those of a model of the size with the resized table, whose gradients come back through it."""
    for size in ((48, 32), (64, 64)):
        ours, theirs = model(), model(img_size=size)
        table = ours.backbone.rel_pos_bias.relative_position_bias_table
        torch.nn.init.normal_(table)
        with torch.no_grad():
            for name, value in theirs.state_dict().items():
                value.copy_(
                    resize_table(table, (4, 4), (size[0] // 8, size[1] // 8))
                    if name.endswith('bias_table')
                    else ours.state_dict()[name]
                )
        images, mask = torch.randn(2, 3, *size), (torch.rand(2, size[0] // 8, size[1] // 8) < 0.5).to(torch.uint8)
        loss, expected = (each.loss(images, mask)['loss'] for each in (ours, theirs))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        loss.backward()
        assert table.grad.abs().sum() > 0


def test_a_compiled_model_is_compiled_once_more_at_each_change():
    """The losses are those of the model itself."""
    plain = model(arch={**TINY['arch'], 'num_layers': 1})
    torch.nn.init.normal_(plain.backbone.rel_pos_bias.relative_position_bias_table)
    compiled = copy.deepcopy(plain)
    CompileHook(backend='eager').before_train(SimpleNamespace(model=compiled))
    counters.clear()
    for size, graphs in ((32, 1), (32, 1), (48, 2), (48, 2), (64, 3)):
        images, mask = torch.randn(2, 3, size, size), torch.ones(2, size // 8, size // 8, dtype=torch.uint8)
        ours, expected = (each(images, mask, 'loss')['loss'] for each in (compiled, plain))
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
        ours.backward()
        assert counters['stats']['unique_graphs'] == graphs


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(sizes=224), r'ImageSizeHook.sizes=224 must be a dict of first epochs and sizes, from epoch 0, e.g. {0: '),
        (dict(sizes={40: 160}), r'ImageSizeHook.sizes={40: 160} must be a dict .*, from epoch 0'),
        (dict(sizes={}), r'ImageSizeHook.sizes={} must be'),
        (dict(sizes={0: 128, -1: 3}), r'ImageSizeHook.sizes=.*: -1=-1 must be a whole number of at least 0'),
        (dict(sizes={0: 128, 40: 0}), r'ImageSizeHook.sizes\[40\]=0 must be one side or \(height, width\)'),
        (dict(sizes={0: 128}, by_epoch=1), r'ImageSizeHook.by_epoch=1 must be True or False'),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageSizeHook(**arguments)


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ({0: 32, 2: 50}, r'sizes\[2\] of 50 x 50 px: both sides must be multiples of the patch, 8 px, e.g. 48 x 48$'),
        (
            {0: 32, 2: 16},
            r'sizes\[2\] of 16 x 16 px does not fit: mask_ratio=0.6 masks all 1 units of 16 px of an image',
        ),
    ],
)
def test_size_that_does_not_fit_is_found_at_the_start(image_folder, sizes, message):
    runner = Runner(data_loader(folder(image_folder), workers=0), ImageSizeHook(sizes), max_epochs=3, model=model())
    with pytest.raises(ValueError, match=f'^ImageSizeHook.{message}'):
        runner.call_hook('before_train')


def test_size_that_another_backbone_does_not_take_is_found_at_the_start(image_folder):
    """Timm's ConvNeXt has a stride of 32 px, which its patches of 4 px do not tell."""
    convnext = dict(type='MaskedBackbone', model=dict(type='timm', name='test_convnext'), img_size=64)
    runner = Runner(
        data_loader(folder(image_folder), workers=0), ImageSizeHook({0: 64, 2: 48}), max_epochs=3,
        model=SimMIM(backbone=convnext),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r'^ImageSizeHook.sizes\[2\] of 48 x 48 px does not fit: .*; set head=dict'):
        runner.call_hook('before_train')


def test_data_and_loops_without_sizes_are_named(image_folder):
    def start(dataset, *hooks, **kwargs):
        Runner(data_loader(dataset, workers=0), *hooks, **(kwargs or dict(max_epochs=3))).call_hook('before_train')

    hook = ImageSizeHook(SIZES)
    with pytest.raises(ValueError, match=r'needs one RandomResizedCrop and one SimMIMMaskGenerator without input_size'):
        start(folder(image_folder, masks=SimMIMMaskGenerator(0.6, 16, 8, input_size=40)), hook)
    with pytest.raises(ValueError, match=r'ImageSizeHook needs one RandomResizedCrop'):
        start(ImageFolder(str(image_folder), [LoadImage(), SimMIMMaskGenerator(0.6, 16, 8)]), hook)
    with pytest.raises(ValueError, match=r'ImageSizeHook needs ImageFolder .* got Subset'):
        start(Subset(folder(image_folder), range(6)), hook)
    with pytest.raises(ValueError, match=r'counts epochs, which IterBasedTrainLoop has not; give iterations, and by_e'):
        start(folder(image_folder), hook, loop=IterBasedTrainLoop, max_iters=9)
    many = {epoch: 32 + 8 * epoch for epoch in range(9)}
    with pytest.raises(ValueError, match=r'ImageSizeHook.sizes has 9 different sizes, of which --compile .* takes 8; '):
        start(folder(image_folder), CompileHook(backend='eager'), ImageSizeHook(many))
    # A ratio that a ramp reaches later is checked at the sizes of its time: 0.8 of 4 units are all.
    with pytest.raises(ValueError, match=r'ImageSizeHook.sizes\[0\] of 32 x 32 px does not fit: mask_ratio=0.8 masks'):
        start(folder(image_folder), MaskRatioHook(0.8, 0.1), ImageSizeHook(SIZES))


def test_steps_by_hand():
    steps = SizeSteps(((0, (128, 128)), (40, (160, 96)), (80, (192, 192))))
    found = {iteration: steps(iteration) for iteration in (0, 39, 40, 79, 80, 999)}
    assert list(found.values()) == [(128, 128)] * 2 + [(160, 96)] * 2 + [(192, 192)] * 2


@pytest.mark.slow
def test_run_that_is_resumed_around_a_change_ends_bit_for_bit_the_same(image_folder, tmp_path):
    """12 images in batches of 4: three iterations per epoch, changes after 3 and 6."""
    config = tmp_path / 'leaf.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs/simmim_vit-tiny_folder.py")!r}\n'
        "custom_hooks = [dict(type='ReconstructionHook', interval=9),\n"
        "                dict(type='ImageSizeHook', sizes={0: 32, 1: 48, 2: (64, 48)})]\n"
    )

    def train(name, workers, *flags):
        printed = run(
            sys.executable, TOOLS / 'train.py', config, '--work-dir', tmp_path / name, *flags, '--cfg-options',
            f'data_root={image_folder}', *SMALL, 'train_cfg.max_epochs=3', 'model.backbone.drop_path_rate=0.3',
            'default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.max_keep_ckpts=-1',
            f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}',
        )  # fmt: skip
        return printed, load_file(tmp_path / name / 'iter_9.pth')

    printed, straight = train('straight', 0)
    lines = [line[line.index('Images of') :] for line in printed.splitlines() if 'Images of' in line]
    assert lines == [
        'Images of 32 x 32 px from epoch 1 on', 'Images of 48 x 48 px from epoch 2 on',
        'Images of 64 x 48 px from epoch 3 on',
    ]  # fmt: skip
    for resume, workers in ((2, 2), (3, 0)):  # the last one of a size, the first one of the next
        _, end = train(f'from_{resume}', workers, '--resume', tmp_path / f'straight/iter_{resume}.pth')
        for part in ('state_dict', 'optimizer'):
            assert same(straight[part], end[part], part) > 10
        assert straight['param_schedulers'] == end['param_schedulers']
        assert same(*(each['message_hub']['log_scalars'] for each in (straight, end))) >= 4
