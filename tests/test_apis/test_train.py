import argparse
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from helpers.paths import ROOT
from simmim_plugin import config
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import save_file
from simmim_plugin.commands import options as command_options
from simmim_plugin.registry import build_part
from simmim_plugin.utils import errors, files, hardware
from simmim_plugin.utils.arguments import sides
from simmim_plugin.utils.distributed import WAIT
from simmim_plugin.utils.meta import on_meta

CONFIG = str(ROOT / 'configs/simmim_vit-b_folder.py')


def test_setting_data_root_is_enough(tmp_path):
    assert config.load_config(CONFIG, {'data_root': '/photos'}).train_dataloader.dataset.data_root == '/photos'
    leaf = tmp_path / 'mine.py'
    leaf.write_text(f"_base_ = {CONFIG!r}\ndata_root = '/mine'\n")
    assert config.load_config(str(leaf)).train_dataloader.dataset.data_root == '/mine'


def test_data_root_of_the_data_set_itself_wins_and_nothing_is_ignored():
    options = {'train_dataloader.dataset.data_root': '/mine'}
    assert config.load_config(CONFIG, options).train_dataloader.dataset.data_root == '/mine'
    with pytest.raises(
        ValueError, match=r"data_root='/x' has no place in .*quickstart.py, whose dataset is PackagePhotos"
    ):
        config.load_config(str(ROOT / 'configs/quickstart.py'), {'data_root': '/x'})


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('optim_wraper.optimizer.lr', "there is no 'optim_wraper'; did you mean 'optim_wrapper'"),
        ('optim_wrapper.optimiser.lr', "unknown config key 'optim_wrapper.optimiser.lr'.*did you mean 'optimizer'"),
        ('model.backbone.arch.x', "model.backbone.arch is a plain value and has no 'x'"),
        ('custom_hooks.7.interval', "'7' is no index into a list of 1"),
        ('lr', "there is no 'lr'; did you mean 'optim_wrapper.optimizer.lr'"),
        ('mask_ratio', "there is no 'mask_ratio'; did you mean 'mask.mask_ratio'"),
        ('maks.mask_ratio', "there is no 'maks'; did you mean .*'mask'"),
        (
            'masks.simmim.mask_ratio',
            "nothing is built from 'masks.simmim'; set one of the named parts load, crop, flip, mask",
        ),
        ('batch_size', "did you mean 'train_dataloader.batch_size'"),
    ],
)
def test_unknown_options_are_named(key, message):
    with pytest.raises(ValueError, match=message):
        config.load_config(CONFIG, {key: 1})


def test_options_that_exist_or_may_exist_pass():
    cfg = config.load_config(
        CONFIG,
        {
            'train_cfg.max_epochs': 3,
            'optim_wrapper.accumulative_counts': 2,
            'custom_hooks.0.interval': 5,
            'sync_bn': None,
        },
    )
    assert cfg.train_cfg.max_epochs == 3 and cfg.optim_wrapper.accumulative_counts == 2
    assert cfg.custom_hooks[0].interval == 5


def test_misspelt_key_in_a_file_is_named(tmp_path):
    leaf = tmp_path / 'typo.py'
    leaf.write_text(f'_base_ = {CONFIG!r}\noptim_wraper = dict(optimizer=dict(lr=1.0))\n')
    with pytest.raises(ValueError, match="unknown config key 'optim_wraper'; did you mean 'optim_wrapper'"):
        config.load_config(str(leaf))


def test_keys_and_pipelines_that_would_do_nothing_are_named(tmp_path, capsys):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f'_base_ = {CONFIG!r}\nbatch_size = 16\n')
    with pytest.raises(ValueError, match=r"'batch_size' does nothing at the top .* mean 'train_dataloader.batch_size'"):
        config.load_config(str(leaf))
    leaf.write_text(f'_base_ = {CONFIG!r}\nbatch_size = 16\ntrain_dataloader = dict(batch_size=batch_size)\n')
    assert config.load_config(str(leaf)).train_dataloader.batch_size == 16
    assert not capsys.readouterr().out
    leaf.write_text(
        f'_base_ = {CONFIG!r}\ntrain_pipeline = _base_.train_pipeline\ntrain_pipeline[3].mask_ratio = 0.9\n'
    )
    config.load_config(str(leaf))
    assert 'train_pipeline' in capsys.readouterr().out
    cfg = config.load_config(CONFIG, {'train_pipeline.3.mask_ratio': 0.9})
    assert cfg.train_dataloader.dataset.pipeline[3].mask_ratio == 0.9


def test_schedules_that_do_not_fit_the_length_are_named():
    def warnings_of(**options):
        options = {key.replace('__', '.'): value for key, value in options.items()}
        return train.schedule_warnings(
            config.load_config(CONFIG.replace('vit-b', options.pop('size', 'vit-b')), options)
        )

    assert warnings_of() == [] and warnings_of(size='vit-tiny') == []
    assert 'milestones [700] are beyond max_epochs=400' in warnings_of(train_cfg__max_epochs=400)[0]
    assert 'ends at epoch 60 of 90' in warnings_of(size='vit-tiny', train_cfg__max_epochs=90)[0]
    assert 'continues to epoch 60, beyond max_epochs=2' in warnings_of(size='vit-tiny', train_cfg__max_epochs=2)[0]


def test_an_option_without_a_value_is_named(capsys):
    parser = argparse.ArgumentParser()
    command_options.add_cfg_options(parser)
    assert parser.parse_args(['--cfg-options', 'a.b=1']).cfg_options == {'a.b': 1}
    words = ['root=/my photos/of 2024, 2025', 'betas=[0.9, 0.95]', "quoted='a b'", 'size=1,2', 'list=[a, b]', 'c= 3']
    assert parser.parse_args(['--cfg-options', *words]).cfg_options == {
        'root': '/my photos/of 2024, 2025', 'betas': [0.9, 0.95], 'quoted': 'a b', 'size': [1, 2], 'list': ['a', 'b'],
        'c': 3,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', 'data_root', 'images'])
    assert "--cfg-options needs KEY=VALUE, got 'data_root'" in capsys.readouterr().err


def test_missing_config_suggests_near_ones():
    with pytest.raises(FileNotFoundError, match=r'simmim_vit-b.*does not exist.*did you mean .*simmim_vit-b\.py'):
        config.load_config(str(ROOT / 'configs/simmim_vit-bb.py'))


def test_work_dir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r"work_dir='.*file/run' is not writable \(Not a directory\)"):
        files.check_writable(str(tmp_path / 'file' / 'run'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_work_dir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match='Permission denied'):
        files.check_writable(str(tmp_path / 'run'))


@pytest.mark.parametrize(
    'name',
    ['finetune/vit-tiny_folder', 'finetune/vit-tiny_folder_10pct', 'detection/mask-rcnn_vit-tiny_folder',
     'segmentation/upernet_vit-tiny_folder'],
)  # fmt: skip
def test_a_data_root_that_is_not_set_is_named(tmp_path, name):
    cfg = config.load_config(str(ROOT / f'configs/{name}.py'))
    train.prepare(cfg, name, str(tmp_path))
    with pytest.raises(ValueError, match='data_root is not set; set it in the config, or on the command line'):
        train.build_runner(cfg)


def test_detectors_compute_in_bfloat16_where_the_operators_can():
    cfg = Config(dict(default_scope='mmdet', model=dict(type='FasterRCNN', backbone=dict()), optim_wrapper=dict()))
    assert train.autocast_parts(cfg) == ('backbone',)
    cfg.model.neck = dict()
    assert train.autocast_parts(cfg) == ('backbone', 'neck')
    cfg.optim_wrapper.parts = ('neck',)
    assert train.autocast_parts(cfg) == ('neck',)
    assert train.autocast_parts(Config(dict(default_scope='mmseg', model=dict(backbone=dict())))) is None
    with pytest.raises(ValueError, match='SoftTeacher has no backbone or neck of its own'):
        train.autocast_parts(Config(dict(default_scope='mmdet', model=dict(type='SoftTeacher'))))


def test_prepare_fills_in_the_command_line(tmp_path):
    cfg = config.load_config(CONFIG, {'load_from': 'start.pth'})
    train.prepare(cfg, CONFIG, str(tmp_path), resume='auto', amp=True)
    assert not cfg.resume and cfg.load_from == 'start.pth'  # nothing to resume from: a first start
    assert cfg.optim_wrapper.on_cpu and cfg.work_dir == str(tmp_path)
    torch.save({'meta': {'epoch': 1, 'iter': 3}, 'optimizer': {}, 'state_dict': {}}, tmp_path / 'epoch_1.pth')
    train.prepare(cfg, CONFIG, str(tmp_path), resume='auto')
    assert cfg.resume and cfg.load_from == str(tmp_path / 'epoch_1.pth')
    with pytest.raises(FileNotFoundError, match=r'--resume nothing.pth'):
        train.prepare(cfg, CONFIG, str(tmp_path), resume='nothing.pth')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    with pytest.raises(ValueError, match='got AmpOptimWrapper'):
        train.prepare(cfg, CONFIG, str(tmp_path), amp=True)


@pytest.mark.parametrize('place', ['https://example.com/vit.pth', '~/gone.pth', 'torchvision://resnet50'])
def test_remote_checkpoints_are_rejected(place, tmp_path):
    """MMEngine would download and unpickle them."""
    cfg = config.load_config(CONFIG, {'load_from': place})
    train.prepare(cfg, CONFIG, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"load_from='.*': no such file .* download remote files first"):
        train.build_runner(cfg)


@pytest.mark.parametrize(('gpus', 'counts', 'rate'), [(8, 1, 4e-4), (16, 1, 8e-4), (1, 4, 2e-4)])
def test_learning_rate_follows_the_total_batch(gpus, counts, rate, tmp_path, monkeypatch):
    """1e-4 per 512 images: 4e-4 on 8 GPUs x 256, 8e-4 on 16; accumulation counts. MMEngine's own scaling is run."""
    import torch
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner
    from torch import nn
    from torch.utils.data import DataLoader

    options = {'optim_wrapper.accumulative_counts': counts}
    cfg = config.load_config(str(ROOT / 'configs/simmim_vit-b.py'), options)
    train.prepare(cfg, 'x.py', str(tmp_path))
    runner = Runner.__new__(Runner)
    runner.cfg, runner._world_size, runner._train_dataloader = cfg, gpus, cfg.train_dataloader
    runner.param_schedulers, runner.auto_scale_lr = None, cfg.auto_scale_lr
    runner._train_loop = None
    monkeypatch.setattr(Runner, 'logger', __import__('logging').getLogger('test'), raising=False)
    train._report_batch(runner, DataLoader(range(512), cfg.train_dataloader.batch_size))
    assert cfg.auto_scale_lr.base_batch_size == 2048  # the config, which is written to the work dir, is unchanged
    lr = cfg.optim_wrapper.optimizer.lr
    wrapper = OptimWrapper(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr))
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    assert wrapper.get_lr()['lr'][0] == pytest.approx(rate if counts == 1 else 1e-4 * 256 * gpus * counts / 512)
    warmup = cfg.param_scheduler[0]
    assert lr * warmup.start_factor == pytest.approx(5e-7 * 2048 / 512)


def test_errors_end_in_one_line_and_keep_the_traceback(tmp_path):
    with pytest.raises(SystemExit) as exit_, errors.one_line_errors():
        errors.keep_traceback_in(str(tmp_path))
        errors.keep_traceback_in('/nowhere')
        raise ValueError('Caught ValueError in worker 0.\n  Traceback ...\nValueError: mask_ratio=2 is outside [0, 1]')
    assert str(exit_.value).splitlines()[0] == 'error: mask_ratio=2 is outside [0, 1]'
    assert 'Traceback' in Path(tmp_path, 'error.txt').read_text()


@pytest.mark.parametrize(('stop', 'code'), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
@pytest.mark.parametrize('swallowed', [False, True])
def test_a_signal_is_no_error_whatever_a_library_makes_of_it(stop, code, swallowed, capsys):
    """MMEngine's Config.pretty_text has a bare `except:` that raises a SyntaxError."""
    with pytest.raises(SystemExit) as exit_, errors.one_line_errors():
        try:
            raise stop
        except BaseException:
            if swallowed:
                raise SyntaxError('Failed to format the config file') from stop
            raise
    assert exit_.value.code == code
    assert capsys.readouterr().err == ('interrupted\n' if code == 130 else '')


def test_user_errors_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(SystemExit) as exit_, errors.one_line_errors():
        config.load_config('nosuch.py')
    assert 'nosuch.py' in str(exit_.value) and 'traceback' not in str(exit_.value) and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_, errors.one_line_errors():
        int('a bug')  # not raised by the package
    assert 'traceback' in str(exit_.value) and len(list(tmp_path.iterdir())) == 1


def test_a_framework_that_is_missing_is_named(monkeypatch):
    from mmengine.registry import Registry

    monkeypatch.setattr(errors, 'find_spec', lambda name: None)
    with pytest.raises(KeyError) as raised:
        Registry('transform', scope='simmim_plugin').build(dict(type='mmpretrain.torchvision/RandomHorizontalFlip'))
    assert errors.message_of(raised.value) == (
        "mmpretrain.torchvision/RandomHorizontalFlip needs mmpretrain: pip install 'simmim_plugin[mm]'"
    )


@pytest.mark.parametrize('name', ['simmim_vit-b_folder.py', 'finetune/vit-b_in1k.py'])
def test_data_that_are_not_there_are_named(name, tmp_path):
    cfg = config.load_config(name)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^data_root='data/im.*' is not a folder .*--cfg-options data_root="):
        train.build_runner(cfg)


def test_every_config_builds_its_model_and_pipeline(tmp_path):
    """Every leaf: its model on meta tensors, its pipeline on a real image; the sizes of both agree."""
    import numpy as np
    from mmengine.dataset import Compose
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('simmim_plugin')
    for path in sorted((ROOT / 'configs').glob('*.py')):
        cfg = config.load_config(str(path))
        with on_meta():
            model = MODELS.build(cfg.model)
        channels, size = model.head.out_channels, sides('crop.size', cfg.crop.size)
        file = tmp_path / f'{channels}.npy'
        np.save(file, np.random.default_rng(0).integers(0, 255, (channels, 300, 280), dtype=np.uint8))
        dataset = cfg.train_dataloader.dataset
        dataset = dataset.get('dataset', dataset)
        sample = Compose(dataset.pipeline)(dict(img_path=str(file)))
        assert sample['inputs'].shape == (channels, *size), path.name
        assert size == sides('img_size', cfg.model.backbone.img_size), path.name
        patch = getattr(model.backbone, 'patch_size', 4)  # MMPretrain's Swin has none
        assert sample['mask'].shape == (size[0] // patch, size[1] // patch), path.name
        assert sample['mask'].float().mean().item() == pytest.approx(0.6, abs=0.03), path.name
        assert len(model.data_preprocessor.mean) == channels, path.name


@pytest.mark.parametrize(
    ('environment', 'cores', 'gpu', 'workers'),
    [
        ({}, 12, True, 12),
        ({}, 64, True, 16),
        ({'LOCAL_WORLD_SIZE': '8'}, 64, True, 8),
        ({'LOCAL_WORLD_SIZE': '8'}, 4, True, 1),
        ({'LOCAL_WORLD_SIZE': '8', 'SLURM_CPUS_PER_TASK': '10'}, 10, True, 10),
        ({}, 12, False, 2),
    ],
)
def test_workers_follow_the_cores(environment, cores, gpu, workers, monkeypatch):
    for name in ('LOCAL_WORLD_SIZE', 'SLURM_CPUS_PER_TASK'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    assert hardware.default_workers() == workers


def test_workers_of_the_config_count(tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    for i in range(2):
        Image.new('RGB', (32, 32)).save(data / f'{i}.png')
    options = {'data_root': str(data), 'train_dataloader.batch_size': 2, 'model.backbone.arch': 'small'}
    for given, workers in (({}, hardware.default_workers()), ({'train_dataloader.num_workers': 3}, 3)):
        cfg = config.load_config(CONFIG, {**options, **given})
        train.prepare(cfg, CONFIG, str(tmp_path / 'work'))
        assert train.build_runner(cfg).train_dataloader.num_workers == workers


@pytest.mark.parametrize(
    ('batch', 'iterations', 'words'),
    [
        (1, None, ['12 iterations per epoch']),
        (2, None, ['6 iterations per epoch', 'Only 6 iterations per epoch: lower train_dataloader.batch_size']),
        (5, None, ['2 iterations per epoch', 'Only 2 iterations per epoch, and 2 images per rank and epoch are']),
        (12, None, ['1 iterations per epoch', 'Only 1 iterations per epoch: lower']),
        (5, 7, ['7 iterations']),
        (20, 7, ['7 iterations']),  # more than there are images: they are repeated
    ],
)  # fmt: skip
def test_the_lines_on_batches_count_what_is_dropped(batch, iterations, words, image_folder, tmp_path, capsys):
    small = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    options = {'data_root': str(image_folder), 'train_dataloader.batch_size': batch, 'train_dataloader.num_workers': 0}
    cfg = config.load_config(small, options)
    if iterations:
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    train.prepare(cfg, small, str(tmp_path))
    train.build_runner(cfg)
    lines = capsys.readouterr().out.splitlines()
    total = next(line for line in lines if 'Total batch' in line)
    assert total.endswith(f'accumulated; {words[0]}')
    assert [line.split('WARNING - ')[1][: len(words[-1])] for line in lines if 'Only' in line] == words[1:]


@pytest.mark.parametrize('name', ['hf', 'official.safetensors', 'official.pth'])
def test_load_from_on_the_command_line_takes_any_kind(name, image_folder, tmp_path):
    small = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    options = {'data_root': str(image_folder), 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 0}
    theirs = build_part(config.load_config(small, options).model)
    torch.nn.init.normal_(theirs.backbone.cls_token)
    save_file(theirs.state_dict(), tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / name, name.split('.')[0])
    if name == 'official.pth':  # as trainings of others write it
        torch.save({**torch.load(tmp_path / name), 'args': argparse.Namespace(lr=1.0)}, tmp_path / name)
    cfg = config.load_config(small, {**options, 'load_from': str(tmp_path / name)})
    runner = train.build_runner(train.prepare(cfg, small, str(tmp_path / 'work')))
    runner.load_or_resume()
    ours = runner.model.backbone.state_dict()
    assert ours.keys() == theirs.backbone.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.backbone.state_dict().items())


def test_a_dumped_config_runs_without_workers(image_folder, tmp_path):
    """It has the timeout that was filled in for workers, for which PyTorch raises without them."""
    small = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    cfg = config.load_config(small, {'data_root': str(image_folder), 'train_dataloader.batch_size': 4})
    train.build_runner(train.prepare(cfg, small, str(tmp_path / 'work')))
    assert cfg.train_dataloader.timeout == WAIT
    cfg.dump(tmp_path / 'dumped.py')
    dumped = config.load_config(str(tmp_path / 'dumped.py'), {'train_dataloader.num_workers': 0})
    loader = train.build_runner(train.prepare(dumped, 'dumped.py', str(tmp_path / 'work'))).train_dataloader
    assert len(list(loader)) == 3


@pytest.mark.parametrize('stops', [False, True])
def test_the_workers_end_with_the_training(stops, image_folder, tmp_path, monkeypatch):
    # Left to the exit, PyTorch waits 5 s for each of them where memory is pinned: 80 s with 16 workers.
    small = ROOT / 'configs/simmim_vit-tiny_folder.py'
    options = {
        'data_root': str(image_folder), 'train_dataloader.num_workers': 2, 'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 1, 'model.backbone.arch.num_layers': 1, 'custom_hooks': [],
    }  # fmt: skip
    cfg = config.load_config(str(small), options)
    runner = train.build_runner(train.prepare(cfg, str(small), str(tmp_path / 'work')))
    if stops:
        monkeypatch.setattr(runner.model, 'train_step', lambda *args, **kwargs: sys.exit(75))
        with pytest.raises(SystemExit):
            train.run_training(runner)
    else:
        train.run_training(runner)
    assert runner.train_dataloader.persistent_workers and not multiprocessing.active_children()
