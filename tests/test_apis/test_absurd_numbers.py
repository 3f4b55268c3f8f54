"""Numbers that were accepted and trained nothing or to NaN; weights that are not finite; emptied moments; names."""

import argparse

import pytest
import torch

from helpers.paths import ROOT
from simmim_plugin.apis import train
from simmim_plugin.apis.settings import check_settings
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file, tensors_of
from simmim_plugin.commands import recipes
from simmim_plugin.config import load_config
from simmim_plugin.experiments import runs
from simmim_plugin.utils.errors import one_line_errors
from simmim_plugin.utils.files import printable

CONFIG = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
nan, inf = float('nan'), float('inf')


@pytest.mark.parametrize(
    ('place', 'value', 'words'),
    [
        ('train_cfg.max_epochs', 2.5, 'must be a whole number of at least 1'),
        ('auto_scale_lr.base_batch_size', -1, 'must be a whole number of at least 1'),
        ('optim_wrapper.clip_grad.max_norm', nan, 'must be a number above 0; 5 is the published value'),
        ('optim_wrapper.optimizer.eps', nan, 'must be a finite number'),
        ('custom_hooks.0.interval', nan, 'must be a finite number'),
        ('randomness.seed', -1, 'must be a whole number from 0 to 4294967295'),
    ],
)
def test_are_named(place, value, words, image_folder, tmp_path):
    cfg = load_config(CONFIG, {'data_root': str(image_folder), place: value})
    with pytest.raises(ValueError, match=rf'^{place}={value!r} {words}'):
        train.build_runner(train.prepare(cfg, CONFIG, str(tmp_path)))


def test_a_norm_that_clips_nothing_is_allowed():
    check_settings(load_config(CONFIG, {'optim_wrapper.clip_grad.max_norm': inf, 'randomness.seed': None}))


def test_a_single_schedule_and_other_loaders_are_checked():
    cfg = load_config(CONFIG)
    cfg.test_dataloader = dict(batch_size=0)
    with pytest.raises(ValueError, match=r'^test_dataloader.batch_size=0 must be a whole number of at least 1'):
        check_settings(cfg)
    cfg.test_dataloader = None
    cfg.param_scheduler = dict(type='LinearLR', start_factor=2, end=5)
    with pytest.raises(ValueError, match=r'^param_scheduler.start_factor=2 must be a number in \[0, 1\]'):
        check_settings(cfg)


def test_seeds_of_the_commands(tmp_path):
    args = argparse.Namespace(devices=1, epochs=None, batch_size=None, seed=-1)
    with pytest.raises(ValueError, match=r'^--seed=-1 must be a whole number from 0 to 4294967295'):
        recipes.check_arguments(args)
    args = argparse.Namespace(out=str(tmp_path), jobs=1, seeds=[0, -1])
    with pytest.raises(ValueError, match=r'^--seeds=-1 must be a whole number from 0 to 4294967295'):
        runs.check_arguments(args)


def runner_of(image_folder, work_dir, **options):
    options = {
        'data_root': str(image_folder), 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1, 'custom_hooks': [], 'default_hooks.checkpoint.interval': 1,
        'param_scheduler': None, 'experiment_name': work_dir.name, **options,
    }  # fmt: skip
    cfg = load_config(CONFIG, options)
    return train.build_runner(train.prepare(cfg, CONFIG, str(work_dir), resume='auto'))


@pytest.mark.parametrize('average', [False, True])
def test_weights_that_are_not_finite_are_not_written(average, image_folder, tmp_path):
    hooks = [
        dict(type='EMAHook', momentum=1e-8)
    ] * average  # the average stays as it was, the raw weights are saved too
    runner = runner_of(image_folder, tmp_path / 'work', custom_hooks=hooks)

    def spoil(*args):
        for parameter in runner.model.head.parameters():
            parameter.data[0] = nan

    runner.hooks[0].after_train_epoch = spoil
    with pytest.raises(ValueError, match=r'head.decoder.weight, head.decoder.bias are not finite at iteration 3'):
        train.run_training(runner)
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize('emptied', ['all', 'one'])
def test_moments_that_were_emptied_are_not_resumed_as_fresh_ones(emptied, image_folder, tmp_path):
    work = tmp_path / 'work'
    train.run_training(runner_of(image_folder, work))
    checkpoint = load_file(work / 'epoch_1.pth')
    state = checkpoint['optimizer']['state']
    if emptied == 'all':
        state.clear()
    else:
        state[next(iter(state))] = {}
    torch.save(checkpoint, work / 'changed')  # the tensors are still mapped from the other file
    (work / 'changed').replace(work / 'epoch_1.pth')
    again = runner_of(image_folder, work, **{'train_cfg.max_epochs': 2, 'experiment_name': 'again'})
    with pytest.raises(ValueError, match=r'the state of the optimiser is missing .* load_from=CHECKPOINT'):
        train.run_training(again)


def test_names_are_printed_without_control_characters(tmp_path, capsys):
    assert printable('a\x1b[2J\nb\u202e\x9b.png') == r'a\x1b[2J\nb\u202e\x9b.png'
    assert printable('größe 画像 e\u0301.png') == 'größe 画像 e\u0301.png'
    assert printable(b'\xff.png'.decode('utf-8', 'surrogateescape')) == r'\xff.png'
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        raise OSError('cannot read a\x1b]0;title\x07.png\nsecond line')
    assert str(exit_.value).startswith('error: cannot read a\\x1b]0;title\\x07.png\nsecond line')
    with pytest.raises(ValueError, match=r"a tensor is called 'x\\x1b\[2J\\n'"):
        tensors_of({'state_dict': {'x\x1b[2J\n': torch.zeros(1)}})


@pytest.fixture
def source(tmp_path):
    """A checkpoint of this package, without tables, that states its heads, size, mean and std."""
    from helpers.checkpoints import write_checkpoint

    backbone = dict(
        type='SimMIMViT', arch=dict(embed_dims=64, num_layers=1, num_heads=4, feedforward_channels=64), img_size=32,
        patch_size=16, use_shared_rel_pos_bias=False,
    )  # fmt: skip
    return write_checkpoint(tmp_path / 'source.pth', backbone, mask_patch_size=16, model_patch_size=16)


def test_converting_heeds_or_refuses_what_is_given(source, tmp_path):
    target = tmp_path / 'target.pth'
    convert_file(source, target, 'plugin', mean=[1, 2, 3], std=[4, 5, 6])
    model = load_file(target)['simmim_plugin']['model']
    assert model['data_preprocessor'] == dict(type='SimMIMDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6])
    assert load_file(source)['simmim_plugin']['model']['data_preprocessor']['mean'] == [120] * 3
    for size in (32, 64):  # its own, and another, to which it is resized
        convert_file(source, target, 'plugin', num_heads=4, img_size=(size, size))
        assert load_file(target)['simmim_plugin']['model']['backbone']['img_size'] in (size, [size, size])
    for options, words in (
        (dict(num_heads=2), '--num-heads 2: SRC states 4'),
        (dict(img_size=(64, 60)), '--img-size of 64 x 60 px: both sides must be multiples of the patch'),
        (dict(mean=[1, 2, 3]), '--mean .* 3 values of each are needed'),
    ):
        with pytest.raises(ValueError, match=f'^{words}'):
            convert_file(source, target, 'plugin', **options)
    for to in ('official', 'timm', 'mmpretrain', 'backbone'):
        with pytest.raises(ValueError, match=rf'^--mean and --std have no place in --to {to}, .* plugin and hf'):
            convert_file(source, target, to, mean=[1, 2, 3], std=[4, 5, 6])
