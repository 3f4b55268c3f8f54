"""What `simmim pretrain` and `simmim finetune` share: the batch that fits, the config, and the start."""

import argparse
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from simmim_plugin.benchmark.counters import saved_bytes
from simmim_plugin.config import load_config
from simmim_plugin.launch import FEW_ITERATIONS, check_writable
from simmim_plugin.machine import default_workers
from simmim_plugin.optim import has_bfloat16
from simmim_plugin.registry import build_part
from simmim_plugin.shipped import TOOLS, run_tool
from simmim_plugin.simmim import SimMIM

SHARE_OF_MEMORY = 0.8  # of what is free
STATE_BYTES = 16  # per parameter: weight, gradient, two moments of AdamW
SMALLEST_PROCESSOR_BATCH = 32


@dataclass
class Fit:
    """How much fits.

    Args:
        batch: Images per process.
        gigabytes: What a step of it needs, by arithmetic; None where the batch was given.
        free: What is free, GB.
    """

    batch: int
    gigabytes: float | None = None
    free: float | None = None


def add_arguments(parser: argparse.ArgumentParser, epochs: str) -> None:
    """Add the arguments of both."""
    parser.add_argument('--epochs', type=int, help=f'passes over the images ({epochs})')
    parser.add_argument('--devices', type=int, help='GPUs, or processes where there is none (all GPUs, or 1)')
    parser.add_argument('--batch-size', type=int, help='images per device and step (what fits)')
    parser.add_argument('--out', help='folder of config, logs, checkpoints and pictures')
    parser.add_argument('--seed', type=int, default=0, help='of everything that is random (0)')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint in --out')
    parser.add_argument('--dry-run', action='store_true', help='write the config and say what would run, no more')


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in `devices`, and raise ValueError for numbers out of range."""
    gpus = torch.cuda.device_count()
    args.devices = args.devices if args.devices is not None else max(1, gpus)
    for name in ('epochs', 'devices', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f'--{name.replace("_", "-")} {value} must be positive')
    if 0 < gpus < args.devices:
        raise ValueError(f'--devices {args.devices}: this machine has {gpus} GPUs')


def free_memory() -> float:
    """Bytes that are free on the GPU, or on the machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


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
    inputs = torch.zeros(1, cfg.model.backbone.get('in_channels', 3), size, size)
    side = size // cfg.model.backbone.patch_size
    mask = (torch.arange(side**2) < 0.6 * side**2).reshape(1, side, side)
    gpu = torch.cuda.is_available()
    with torch.autocast('cpu', torch.bfloat16, enabled=gpu):
        image_bytes = saved_bytes(model, inputs, mask.to(torch.uint8))
    state = STATE_BYTES * sum(x.numel() for x in model.parameters())
    shares = 1 if gpu else devices  # the processes of a machine without GPUs share its memory
    free = free_memory() / shares
    fits = int(max(1, (SHARE_OF_MEMORY * free - state) / image_bytes))
    if not gpu:
        largest = min(largest, SMALLEST_PROCESSOR_BATCH * devices)
    batch = max(1, min(fits, largest // devices, images // devices // FEW_ITERATIONS))
    batch = 1 << (batch.bit_length() - 1)
    return Fit(batch, (state + batch * image_bytes) / 1e9, free / 1e9)


def write_config(text: str, out: Path, resume: bool) -> Path:
    """Write the config into the work dir.

    Raises:
        ValueError: There is another one, or the folder cannot be written.
    """
    check_writable(str(out))
    path = out / 'config.py'
    if path.is_file() and path.read_text(encoding='utf-8') != text and (resume or list(out.glob('*.pth'))):
        raise ValueError(
            f'{path} is of a training with other settings; give those again, or another --out. To change it by hand: '
            f'simmim train {path} --work-dir {out} --resume'
        )
    path.write_text(text, encoding='utf-8')
    load_config(str(path))
    return path


def tell(images: int, fit: Fit, devices: int, rate: float, rule: str, epochs: int) -> None:
    """Say in three lines what is going to happen."""
    total = fit.batch * devices
    room = '' if fit.gigabytes is None else f'; a step needs about {fit.gigabytes:.1f} of {fit.free:.1f} GB'
    print(f'batch:   {devices} x {fit.batch} = {total} images{room}')
    print(f'rate:    {rate:.3g} = {rule}')
    print(
        f'length:  {epochs} epochs of {images // total} iterations over {images:,} images, {default_workers()} worker'
        f'{"s" if default_workers() > 1 else ""} per process'
    )


def start(command: str, path: Path, args: argparse.Namespace) -> None:
    """Say how to do the same with the scripts, and do it."""
    flags = ['--work-dir', str(path.parent), *['--resume'] * args.resume]
    if not torch.cuda.is_available() and has_bfloat16():
        flags.append('--amp')
    script = ['bash', str(TOOLS / 'dist_train.sh'), str(path), str(args.devices), *flags]
    print(f'the same: {shlex.join(script[1:])}', flush=True)
    if args.dry_run:
        return
    if args.devices > 1:
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', script)
    sys.argv = [f'simmim {command}', str(path), *flags]
    run_tool('train.py')
