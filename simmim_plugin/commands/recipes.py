"""What `simmim pretrain` and `simmim finetune` share: the batch that fits, the config, the start of the training."""

import argparse
import math
import os
import shlex
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from simmim_plugin.apis.train import FEW_ITERATIONS
from simmim_plugin.commands import train
from simmim_plugin.config import RUNNER_KEYS, fill_in_parts, load_config
from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.counters import saved_bytes
from simmim_plugin.utils.files import check_writable
from simmim_plugin.utils.hardware import default_workers, free_memory
from simmim_plugin.utils.resources import ROOT, TOOLS

WRITTEN = '"""Written by `simmim'  # how our configs begin
SHARE_OF_MEMORY = 0.8  # of what is free
STATE_BYTES = 16  # per parameter: weight, gradient, two moments of AdamW
LARGEST_ON_PROCESSORS = 32  # images per process


@dataclass
class Fit:
    """How much fits.

    Args:
        batch: Images per process.
        gigabytes: What a step of it needs, by arithmetic; None where the batch was given.
        free: What is free, GB.
        by_images: Whether the number of images is why it is not larger.
    """

    batch: int
    gigabytes: float | None = None
    free: float | None = None
    by_images: bool = False


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in `devices`, and raise ValueError for numbers out of range."""
    gpus = torch.cuda.device_count()
    if args.devices is None:
        args.devices = max(1, gpus)
    whole('--devices', args.devices, 1, gpus or math.inf, 'the GPUs of this machine' if gpus else '')
    for name in ('epochs', 'batch_size'):
        if (value := getattr(args, name)) is not None:
            whole(f'--{name.replace("_", "-")}', value, 1)


class Loss(nn.Module):
    """A backbone, or SimMIM, as a function of images and masks that has a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(1, C, H, W) images and (1, h, w) masks -> a number; a backbone sees no mask."""
        if isinstance(self.model, SimMIM):
            return self.model(images, mask=mask, mode='loss')['loss']
        return self.model(images)[-1].sum()


def fitting_batch(cfg: Config, size: int, images: int, devices: int, largest: int) -> Fit:
    """The largest power of two that fits into memory, and leaves a few iterations per epoch.

    What one image keeps for the backward pass is counted in a forward pass on the processor; nothing is tried on a GPU.

    Args:
        cfg: Of SimMIM, or of a classifier, whose backbone counts.
        size: Side of the images in pixels.
        images: In an epoch.
        devices: Processes that share them.
        largest: Batch of all processes that is not exceeded.
    """
    pretraining = str(cfg.model.type).rsplit('.', maxsplit=1)[-1] == 'SimMIM'
    model = Loss(build_part(cfg.model if pretraining else cfg.model.backbone))
    inputs = torch.zeros(2, cfg.model.backbone.get('in_channels', 3), size, size)
    side = size // cfg.model.backbone.patch_size
    mask = (torch.arange(side**2) < 0.6 * side**2).reshape(1, side, side).to(torch.uint8)
    gpu = torch.cuda.is_available()
    with torch.autocast('cpu', torch.bfloat16, enabled=gpu):
        kept = [saved_bytes(model, inputs[:n], mask.expand(n, -1, -1)) for n in (1, 2)]
    image_bytes = kept[1] - kept[0]  # without what does not grow with the batch
    state = STATE_BYTES * sum(x.numel() for x in model.parameters()) + max(0, kept[0] - image_bytes)
    shares = 1 if gpu else devices  # the processes of a machine without GPUs share its memory
    free = free_memory() / shares
    fits = int((SHARE_OF_MEMORY * free - state) / image_bytes)
    if fits < 1:
        raise ValueError(
            f'a step of one image needs about {(state + image_bytes) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free '
            'per process: take a smaller --arch or --img-size, or give --batch-size to try nevertheless'
        )
    if not gpu:
        largest = min(largest, LARGEST_ON_PROCESSORS * devices)
    by_images = images // devices // FEW_ITERATIONS
    batch = max(1, min(fits, largest // devices, by_images))
    batch = 1 << (batch.bit_length() - 1)
    return Fit(batch, (state + batch * image_bytes) / 1e9, free / 1e9, by_images < min(fits, largest // devices))


def given_batch(args: argparse.Namespace, out: Path, images: int) -> Fit | None:
    """The batch that was asked for: now, or when the training that goes on was started; None: there is none.

    Raises:
        ValueError: There are not so many images.
    """
    batch, path = args.batch_size, out / 'config.py'
    if batch is None and args.resume and path.is_file():
        batch = Config.fromfile(path).train_dataloader.batch_size
    if batch is not None:
        whole('--batch-size', batch, 1, images // args.devices, f'{images} images for --devices={args.devices}')
    return None if batch is None else Fit(batch)


def write_config(text: str, out: Path, resume: bool) -> Path:
    """Write the config into the work dir, in the place of one that was written and never trained.

    Raises:
        ValueError: There is another one, or the folder cannot be written.
    """
    check_writable(str(out))
    path = out / 'config.py'
    old = path.read_text(encoding='utf-8') if path.is_file() else text
    if old != text and not old.startswith(WRITTEN):
        raise ValueError(f'{path} was not written by simmim and is left alone; choose another --out')
    trained = bool(list(out.glob('*.pth')))
    if trained and not resume:
        raise ValueError(f'{out} holds checkpoints of a training: go on with it by --resume, or choose another --out')
    lines = [
        (a.strip(), b.strip())
        for a, b in zip_longest(old.splitlines(), text.splitlines(), fillvalue='')
        if a != b and not a.startswith('Command: ')  # where the run lies is no setting; it may have been moved
    ]
    if lines and trained and _settings(old) != _settings(text):
        raise ValueError(
            f'{path} is of a training with other settings: {lines[0][0]!r} there, {lines[0][1]!r} now; '
            'give those again, or another --out. To go on with the file as it is, longer if you raise its epochs: '
            f'{command_of(out)} --resume'
        )
    path.write_text(text, encoding='utf-8')
    load_config(str(path))
    return path


def _settings(text: str) -> dict[str, Any]:
    """What a written config sets, however its lines put it; earlier versions wrote other lines."""
    cfg = Config.fromstring(text, '.py')
    fill_in_parts(cfg)
    return {key: value for key, value in cfg.to_dict().items() if key in RUNNER_KEYS}


def command_of(out: Path) -> str:
    """The command that trains the config in a work dir."""
    return shlex.join(['simmim', 'train', str(out / 'config.py'), '--work-dir', str(out)]).replace('\\', '\\\\')


def tell(cfg: Config, images: int, fit: Fit, devices: int, epochs: int) -> None:
    """Say in a few lines what is going to happen; the rate and what it is stated for are those of the config."""
    total = fit.batch * devices
    rate, stated = cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size
    room = '' if fit.gigabytes is None else f'; a step needs about {fit.gigabytes:.1f} of {fit.free:.1f} GB'
    kept = fit.by_images and images >= FEW_ITERATIONS * total
    why = f' (few images: {FEW_ITERATIONS} iterations per epoch at least)' if kept else ''
    print(f'batch:   {devices} x {fit.batch} = {total} images{why}{room}')
    print(f'rate:    {rate * total / stated:.3g} = {rate:g} x {total} / {stated}')
    workers = default_workers(devices)
    print(
        f'length:  {epochs} epochs of {images // total} iterations over {images:,} images, {workers} worker'
        f'{"s" if workers > 1 else ""} per process'
    )


def start(path: Path, args: argparse.Namespace) -> None:
    """Print how to do the same with the scripts, and train.

    Args:
        path: Of the config, in its work dir.
        args: Of the command line.
    """
    flags = ['--work-dir', str(path.parent), *['--resume'] * args.resume]
    script = ['bash', str(TOOLS / 'dist_train.sh'), str(path), str(args.devices), *flags]
    own = (ROOT / '.venv/bin/python').absolute() == Path(sys.executable).absolute()  # which the script takes by itself
    print(f'the same: {"" if own else f"PYTHON={shlex.quote(sys.executable)} "}{shlex.join(script[1:])}', flush=True)
    if args.dry_run:
        return
    if args.devices > 1:
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', script)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    train.run(parser.parse_args([str(path), *flags]))
