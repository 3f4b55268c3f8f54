"""The tools as a user runs them: training, resuming, bad input, other folders."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from helpers.commands import SMALL, run, scalars, train
from helpers.paths import ROOT
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.loading import load_pretrained

pytestmark = pytest.mark.core


class Evil:
    def __reduce__(self):
        return (print, ('code from a checkpoint was run',))


def test_train_resume_and_reconstruct(image_folder, tmp_path):
    straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
    log = train(image_folder, straight, 'train_cfg.max_epochs=2', cwd=tmp_path)
    assert 'Total batch 4 = 1 processes x 4 images x 1 accumulated; 3 iterations per epoch' in log
    assert 'Only 3 iterations per epoch' in log and 'Weight decay on' in log and 'eta:' in log and 'img_s:' in log
    for line in ('at the start ->', 'visible mean: ', f'checkpoint: {straight}/epoch_2.pth', 'epoch_2.png'):
        assert line in log, log[-1500:]
    logged = scalars(straight)
    assert [line['iter'] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(line['img_s'] > 0 and line['loss'] > 0 for line in logged)
    for epoch in (0, 1, 2):
        sheet = np.asarray(Image.open(straight / f'reconstructions/epoch_{epoch}.png'))
        assert sheet.shape[1] == 4 * (192 + 4) + 4 and sheet.std() > 10
    assert list(straight.glob('*/vis_data/vis_image/reconstruction_*.png'))

    # One epoch, then --resume into the second: learning rate and iteration continue.
    first_log = train(image_folder, stopped, 'train_cfg.max_epochs=1')
    log = train(image_folder, stopped, 'train_cfg.max_epochs=2', flags=['--resume'])
    assert 'resumed epoch: 1, iter: 3' in log
    again = scalars(stopped)
    assert [line['iter'] for line in again] == [1, 2, 3, 4, 5, 6]
    assert [line['lr'] for line in again] == pytest.approx([line['lr'] for line in logged])

    start = [line for line in log.splitlines() if 'at the start ->' in line][-1]
    assert start.split('images: ')[1].split(' at')[0] in first_log  # not the loss at the resume
    log = train(image_folder, stopped, 'train_cfg.max_epochs=2', flags=['--resume', stopped / 'epoch_1.pth'])
    assert 'resumed epoch: 1, iter: 3' in log

    # The checkpoint alone is enough: no config file, plain data only.
    checkpoint = load_file(straight / 'epoch_2.pth')
    assert checkpoint['simmim_plugin']['model']['backbone']['arch']['embed_dims'] == 32
    model, pipeline = load_pretrained(straight / 'epoch_2.pth')
    assert not model.training and model.backbone.embed_dims == 32 and pipeline[0]['type'] == 'LoadImage'
    images = sorted(image_folder.rglob('*.jpg'))[:3]
    out = tmp_path / 'new folder' / 'picture.png'
    reconstruct = [sys.executable, ROOT / 'tools/reconstruct.py', straight / 'epoch_2.pth', *images, '--out', out]
    printed = run(*reconstruct, cwd=tmp_path)
    assert printed.count('masked loss') == 3 and str(out) in printed
    assert np.asarray(Image.open(out)).shape[0] > 3 * 192
    first = out.read_bytes()
    assert run(*reconstruct) == printed and out.read_bytes() == first  # fixed seed
    run(*reconstruct, '--size', 32, 64, '--mask-ratio', 0.25, '--seed', 1)
    assert 'no picture format has this ending' in run(*reconstruct[:-1], 'a.xyz', ok=False)
    assert '--size=[1, 2, 3] must be one side or (height, width)' in run(*reconstruct, '--size', 1, 2, 3, ok=False)
    assert 'mask_ratio=1.5 must be a number in [0, 1]' in run(*reconstruct, '--mask-ratio', 1.5, ok=False)
    message = run(*reconstruct[:3], image_folder / 'nothing.jpg', ok=False)
    assert message.startswith(f'error: {image_folder}/nothing.jpg: ') and 'no such file' in message

    # A checkpoint that would run code is rejected; a damaged one is named.
    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth')
    (tmp_path / 'half.pth').write_bytes((straight / 'epoch_2.pth').read_bytes()[:5000])
    for name, reason in (('evil.pth', 'it holds Python objects'), ('half.pth', 'it is damaged')):
        message = train(image_folder, tmp_path / 'x', flags=['--resume', tmp_path / name], ok=False)
        assert f"{name}' cannot be read: {reason}" in message and 'code from a checkpoint' not in message

    # Another architecture is rejected, and the checkpoints stay.
    message = train(image_folder, stopped, 'model.backbone.arch.num_layers=1', flags=['--resume'], ok=False)
    assert 'another architecture: not in the model: backbone.blocks.1.gamma_1' in message
    message = train(
        image_folder,
        stopped,
        'train_cfg.max_epochs=3',
        'model.backbone.arch.embed_dims=64',
        flags=['--resume'],
        ok=False,
    )
    assert (
        'error: the checkpoint is of another architecture: of another shape: backbone.cls_token (1, 1, 32) instead of'
        in message
    )
    assert (stopped / 'epoch_2.pth').exists()


def test_run_by_iterations_and_its_curve(image_folder, tmp_path):
    leaf = tmp_path / 'iterations.py'
    leaf.write_text(
        f'_base_ = {str(ROOT / "configs/simmim_vit-tiny_folder.py")!r}\n'
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=5)\n"
        'param_scheduler = []\n'
        "custom_hooks = [dict(type='ReconstructionHook', by_epoch=False)]\n"
        'log_processor = dict(by_epoch=False)\n'
        'default_hooks = dict(checkpoint=dict(by_epoch=False))\n'
    )
    work_dir = tmp_path / 'work'
    command = [sys.executable, ROOT / 'tools/train.py', leaf, '--work-dir', work_dir, '--cfg-options', *SMALL]
    log = run(*command, f'data_root={image_folder}', 'custom_hooks.0.interval=2', 'default_hooks.checkpoint.interval=5')
    assert f'checkpoint: {work_dir}/iter_5.pth' in log
    pictures = sorted(path.name for path in (work_dir / 'reconstructions').iterdir())
    assert pictures == ['iter_0.png', 'iter_2.png', 'iter_4.png', 'iter_5.png']
    lines = [json.loads(line) for line in next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    fixed = [line for line in lines if 'fixed/loss' in line]
    assert [line['step'] for line in fixed] == [0, 2, 4, 5]
    assert f'{fixed[0]["fixed/loss"]:.4f} at the start -> {fixed[-1]["fixed/loss"]:.4f} at the end' in log

    out = tmp_path / 'curve.png'
    run(sys.executable, ROOT / 'tools/analyze_logs.py', work_dir, '--out', out)
    assert np.asarray(Image.open(out)).std() > 10
    message = run(sys.executable, ROOT / 'tools/analyze_logs.py', tmp_path / 'nothing', ok=False)
    assert "nothing' holds no */vis_data/scalars.json" in message


def test_same_seed_same_run(image_folder, tmp_path):
    workers = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True', 'train_cfg.max_epochs=1']
    for name in ('a', 'b'):
        train(image_folder, tmp_path / name, *workers)
    first, second = (load_file(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('a', 'b'))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert [x['loss'] for x in scalars(tmp_path / 'a')] == [x['loss'] for x in scalars(tmp_path / 'b')]


@pytest.mark.parametrize('suffix', ['npy', 'tif'])
def test_many_channels_of_sixteen_bits(suffix, tmp_path):
    """The medical and satellite case: statistics, their lines in a leaf config, training, a picture."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'scenes'
    folder.mkdir()
    scenes = [rng.integers(100 * (i + 1), 3000, (70, 70, 5)).astype(np.uint16) for i in range(8)]
    for i, scene in enumerate(scenes):
        path = str(folder / f'{i}.{suffix}')
        np.save(path, scene) if suffix == 'npy' else tifffile.imwrite(path, scene, photometric='minisblack')
    statistics = [sys.executable, ROOT / 'tools/compute_mean_std.py', folder, '--channels', 5, '--dtype', 'float32']
    printed = run(*statistics, cwd=tmp_path)
    last = "load = dict(_delete_=True, type='LoadImage', channels=5, dtype='float32')\n"
    lines = printed[printed.index('model = dict(') : printed.index(last) + len(last)]
    pixels = np.concatenate([scene.reshape(-1, 5) for scene in scenes]).astype(np.float64)
    printed_values: dict = {}
    exec(lines, printed_values)
    preprocessor = printed_values['model']['data_preprocessor']
    assert preprocessor['mean'] == pytest.approx(pixels.mean(0).tolist(), rel=1e-5)
    assert preprocessor['std'] == pytest.approx(pixels.std(0).tolist(), rel=1e-5)

    # The printed lines are the leaf config of a user; another leaf makes it small.
    mine, leaf = tmp_path / 'scenes.py', tmp_path / 'small.py'
    base = ROOT / 'configs/simmim_vit-b_multichannel.py'
    mine.write_text(f'_base_ = {str(base)!r}\ndata_root = {str(folder)!r}\n{lines}')
    leaf.write_text(
        f'_base_ = {str(mine)!r}\n'
        'model = dict(backbone=dict(img_size=64, drop_path_rate=0.0,\n'
        '    arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)))\n'
        'crop = dict(size=64)\n'
        'train_cfg = dict(max_epochs=2)\n'
    )
    small = [option for option in SMALL if 'arch' not in option]
    log = run(sys.executable, ROOT / 'tools/train.py', leaf, '--work-dir', tmp_path / 'work', '--cfg-options', *small)
    assert 'at the start ->' in log
    losses = [line['loss'] for line in scalars(tmp_path / 'work')]
    assert len(losses) == 4 and 0.5 < losses[0] < 1.5  # normalised: mean absolute value of about 0.87
    out = tmp_path / 'picture.png'
    run(
        sys.executable,
        ROOT / 'tools/reconstruct.py',
        tmp_path / 'work/epoch_2.pth',
        folder / f'0.{suffix}',
        '--out',
        out,
    )
    assert out.exists()

    message = run(*statistics[:3], '--channels', 4, '--dtype', 'float32', ok=False)
    assert 'it has 5 channels, but channels=4 are wanted' in message and 'none of the 8 images' in message


def test_grey_sixteen_bits_stay_one_channel(tmp_path):
    folder = tmp_path / 'xray'
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 4096, (80, 80)).astype(np.uint16)).save(
            folder / f'{i}.png'
        )
    log = train(
        folder, tmp_path / 'work', 'train_cfg.max_epochs=1', 'model.backbone.in_channels=1',
        'model.data_preprocessor.mean=[2048]', 'model.data_preprocessor.std=[1182]',
        'load.channels=1', 'load.dtype=float32',
    )  # fmt: skip
    assert 'at the start ->' in log
    assert load_pretrained(tmp_path / 'work/epoch_1.pth')[0].backbone.in_channels == 1


def test_amp_on_a_cpu(image_folder, tmp_path):
    train(image_folder, tmp_path / 'bf16', 'train_cfg.max_epochs=1', flags=['--amp'])
    train(image_folder, tmp_path / 'fp32', 'train_cfg.max_epochs=1')
    losses = [[line['loss'] for line in scalars(tmp_path / name)] for name in ('bf16', 'fp32')]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    state = load_file(tmp_path / 'bf16/epoch_1.pth')['state_dict']
    assert all(value.dtype == torch.float32 for value in state.values())


def test_a_truncated_image_in_the_middle_of_an_epoch(image_folder, tmp_path):
    good = next(image_folder.rglob('*.jpg')).read_bytes()
    for i in range(20):
        (image_folder / f'more{i:02}.jpg').write_bytes(good)
    (image_folder / 'broken.jpg').write_bytes(good[: len(good) // 2])
    log = train(image_folder, tmp_path / 'work', 'train_cfg.max_epochs=2', 'train_dataloader.num_workers=2')
    assert log.count('broken.jpg') == 1 and 'Image skipped (1 of 33 so far)' in log
    assert len(scalars(tmp_path / 'work')) == 16 and 'at the start ->' in log


def test_too_many_bad_images_stop_with_their_list(image_folder, tmp_path):
    for i in range(3):
        (image_folder / f'broken{i}.jpg').write_bytes(b'nothing')
    message = train(image_folder, tmp_path / 'work', 'train_dataloader.num_workers=2', 'custom_hooks=[]', ok=False)
    error = message[message.index('error: ') :]
    assert 'more than max_bad_ratio=0.05' in error and error.count('broken') >= 2 and 'Traceback (' not in error


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['data_root=/nowhere'], "error: data_root='/nowhere' is not a folder"),
        (['model.backbone.img_size=60'], 'error: img_size of 60 x 60 px'),
        (['mask.mask_ratio=1.5'], 'error: mask_ratio=1.5 must be a number in [0, 1]'),
        (['mask.mask_patch_size=12'], 'error: mask_patch_size=12 must be'),
        (['crop.size=60'], 'error: image of 60 x 60 px'),
        (
            ['model.backbone.in_channels=5'],
            'error: SimMIMViT has in_channels=5, but got an input of shape (2, 3, 64, 64)',
        ),
        (
            ['train_dataloader.batch_size=13'],
            'error: 12 images do not fill one batch of train_dataloader.batch_size=13',
        ),
        (['model.backbone.drop_path=0.1'], "unexpected keyword argument 'drop_path'"),
        (['optim_wraper.lr=1'], "did you mean 'optim_wrapper'"),
    ],
)
def test_bad_input_gives_one_line(options, message, image_folder, tmp_path):
    output = train(image_folder, tmp_path / 'work', *options, ok=False)
    lines = [line for line in output.splitlines() if line.strip()]
    if 'did you mean' in message:  # before there is a work dir, no traceback file is written
        assert lines[-1].startswith('error: ') and message in lines[-1], output[-2000:]
        return
    assert lines[-2].startswith('error: ') and message in lines[-2], output[-2000:]
    assert lines[-1].startswith('(traceback: ') and 'Traceback' in Path(lines[-1][12:-1]).read_text()


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').glob('[!_]*.*')))
def test_help_shows_an_example_from_any_folder(tool, tmp_path):
    command = [sys.executable] if tool.endswith('.py') else ['bash']
    output = run(*command, ROOT / 'tools' / tool, '--help', cwd=tmp_path)
    assert f'tools/{tool}' in output
