"""Shared by `simmim pretrain` and `simmim finetune`: fit the batch size, write the config, start the training."""

import argparse
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from simmim_plugin.apis.train import FEW_ITERATIONS
from simmim_plugin.checkpoints.start import Start, checked_start, source_of
from simmim_plugin.commands import train
from simmim_plugin.config import RUNNER_KEYS, as_written, fill_in_parts, load_config
from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import without_variables
from simmim_plugin.utils.counters import saved_bytes
from simmim_plugin.utils.files import check_writable, lock_folder
from simmim_plugin.utils.hardware import default_workers, free_memory
from simmim_plugin.utils.random_state import LARGEST_SEED
from simmim_plugin.utils.resources import ROOT, TOOLS

WRITTEN = '"""Written by `simmim'  # first words of every config that the commands write
SHARE_OF_MEMORY = 0.8  # of the free memory
STATE_BYTES = 16  # per parameter: weight, gradient, two moments of AdamW
LARGEST_ON_CPUS = 32  # images per process
LEAST_ITERATIONS = 5000  # of a pretraining from scratch, see docs/results.md, 'What made the difference'


@dataclass
class Fit:
    """A batch size that fits into memory.

    Args:
        batch: Images per process.
        gigabytes: Estimated memory of a step, GB; None if the batch size was given.
        free: Free memory, GB.
        by_images: Whether the number of images limits the batch size, not the memory.
        rate: Images per second of a process, of forward and backward pass alone; None if it was not measured.
    """

    batch: int
    gigabytes: float | None = None
    free: float | None = None
    by_images: bool = False
    rate: float | None = None


def check_arguments(args: argparse.Namespace) -> None:
    """Set `devices` if it was not given; raise ValueError for numbers out of range."""
    gpus = torch.cuda.device_count()
    if args.devices is None:
        args.devices = max(1, gpus)
    whole('--devices', args.devices, 1, gpus or math.inf, 'the GPUs of this machine' if gpus else '')
    for name in ('epochs', 'batch_size'):
        if (value := getattr(args, name)) is not None:
            whole(f'--{name.replace("_", "-")}', value, 1)
    whole('--seed', args.seed, 0, LARGEST_SEED)


def data_folders(args: argparse.Namespace) -> str | list[str]:
    """DATA as `data_root` of a config: the absolute path of the folder, or a list of them.

    Raises:
        FileNotFoundError: One is not a folder.
    """
    for folder in args.data:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f'DATA {folder!r} is not a folder (from {Path.cwd()})')
    resolved = [str(Path(folder).resolve()) for folder in args.data]
    return resolved if len(resolved) > 1 else resolved[0]


class Loss(nn.Module):
    """SimMIM or a backbone alone as a differentiable function of images and masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) images and (B, h, w) masks -> scalar; a backbone ignores the masks."""
        if isinstance(self.model, SimMIM):
            return self.model(images, mask=mask, mode='loss')['loss']
        return self.model(images)[-1].sum()


def fitting_batch(cfg: Config, size: int, images: int, devices: int, largest: int) -> Fit:
    """The largest power of two that fits into memory and leaves enough iterations per epoch.

    The bytes that one image saves for the backward pass are counted in a forward pass on the CPU; no GPU is used.

    Args:
        cfg: Config of SimMIM, or of a classifier, of which only the backbone is counted.
        size: Side of the images in pixels.
        images: Images per epoch.
        devices: Processes that share them.
        largest: Upper limit of the total batch size of all processes.

    Raises:
        ValueError: Not even one image fits.
    """
    pretraining = str(cfg.model.type).rsplit('.', maxsplit=1)[-1] == 'SimMIM'
    model = Loss(build_part(cfg.model if pretraining else cfg.model.backbone))
    inputs = torch.zeros(2, cfg.model.backbone.get('in_channels', 3), size, size)
    side = size // cfg.model.backbone.patch_size
    mask = (torch.arange(side**2) < 0.6 * side**2).reshape(1, side, side).to(torch.uint8)
    gpu = torch.cuda.is_available()
    with torch.autocast('cpu', torch.bfloat16, enabled=gpu):
        kept = [saved_bytes(model, inputs[:n], mask.expand(n, -1, -1)) for n in (1, 2)]
    image_bytes = kept[1] - kept[0]  # only what grows with the batch
    state = STATE_BYTES * sum(x.numel() for x in model.parameters()) + max(0, kept[0] - image_bytes)
    shares = 1 if gpu else devices  # the processes of a machine without GPUs share its memory
    free = free_memory() / shares
    fits = int((SHARE_OF_MEMORY * free - state) / image_bytes)
    if fits < 1:
        raise ValueError(
            f'a step of one image needs about {(state + image_bytes) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free '
            'per process: take a smaller --arch or --img-size, or try anyway with --batch-size'
        )
    if not gpu:
        largest = min(largest, LARGEST_ON_CPUS * devices)
    by_images = images // devices // FEW_ITERATIONS
    batch = max(1, min(fits, largest // devices, by_images))
    batch = 1 << (batch.bit_length() - 1)
    rate = None if gpu else _measured_rate(model, inputs, mask.expand(2, -1, -1)) / devices
    return Fit(batch, (state + batch * image_bytes) / 1e9, free / 1e9, by_images < min(fits, largest // devices), rate)


def _measured_rate(model: nn.Module, inputs: Tensor, mask: Tensor) -> float:
    """Images per second of the second of two passes, forward and backward, in float32."""
    for _ in range(2):
        begin = time.perf_counter()
        model(inputs, mask).backward()
        seconds = time.perf_counter() - begin
    return len(inputs) / seconds


def enough_epochs(epochs: int, images: int, total: int) -> int:
    """Epochs of a training from scratch: `epochs`, or more of a small folder, to reach `LEAST_ITERATIONS`.

    Args:
        epochs: Those of a large folder.
        images: Images per epoch.
        total: Images per iteration, of all processes.
    """
    return max(epochs, math.ceil(LEAST_ITERATIONS / max(1, images // total)))


def written_epochs(args: argparse.Namespace, out: Path) -> int | None:
    """Epochs of the training to resume; None if there is none."""
    path = out / 'config.py'
    if not args.resume or not path.is_file():
        return None
    with as_written():
        return int(Config.fromfile(path).train_cfg.max_epochs)


def given_batch(args: argparse.Namespace, out: Path, images: int) -> Fit | None:
    """The batch size that was given, now or when the training to resume was started; None if there is none.

    Raises:
        ValueError: There are fewer images than that.
    """
    batch, path = args.batch_size, out / 'config.py'
    if batch is None and args.resume and path.is_file():
        with as_written():
            batch = Config.fromfile(path).train_dataloader.batch_size
    if batch is not None:
        whole('--batch-size', batch, 1, images // args.devices, f'{images} images for --devices={args.devices}')
    return None if batch is None else Fit(batch)


def written_start(args: argparse.Namespace, out: Path) -> Start | None:
    """What the config of the training to resume has from its checkpoint, which is not needed again; None without it."""
    path = out / 'config.py'
    if not args.resume or not path.is_file():
        return None
    with as_written():
        cfg = Config.fromfile(path)
    if cfg.get('load_from') != source_of(args.init):
        return None
    return checked_start(cfg.load_from, cfg.model.backbone, cfg.model.data_preprocessor)._replace(resumed=True)


def write_config(text: str, out: Path, resume: bool) -> Path:
    """Write the config into the work dir; it replaces one that these commands wrote and that was never trained.

    Raises:
        ValueError: The folder has another config or other settings, is in use, or is not writable.
    """
    check_writable(str(out))
    lock_folder(out)
    text = without_variables(text)
    path = out / 'config.py'
    old = path.read_text(encoding='utf-8') if path.is_file() else text
    if old != text and not old.startswith(WRITTEN):
        raise ValueError(f'{path} was not written by simmim, so it is not overwritten; choose another --out')
    trained = bool(list(out.glob('*.pth')))
    if trained and not resume:
        raise ValueError(f'{out} holds checkpoints of a training: continue it with --resume, or choose another --out')
    lines = [
        (a.strip(), b.strip())
        for a, b in zip_longest(old.splitlines(), text.splitlines(), fillvalue='')
        if a != b and not a.startswith('Command: ')  # the work dir may have been moved
    ]
    if lines and trained and _settings(old) != _settings(text):
        raise ValueError(
            f'{path} is of a training with other settings: {lines[0][0]!r} there, {lines[0][1]!r} now; '
            'repeat those, or choose another --out. To continue with that file, edited if you like: '
            f'{command_of(out)} --resume; for more epochs, with the schedule: --cfg-options train_cfg.max_epochs=NUMBER'
        )
    path.write_text(text, encoding='utf-8')
    load_config(str(path))
    return path


def _settings(text: str) -> dict[str, Any]:
    """Settings of a written config, whatever its lines look like: earlier versions wrote other lines."""
    with as_written():
        cfg = Config.fromstring(text, '.py')
    fill_in_parts(cfg)
    return {key: value for key, value in cfg.to_dict().items() if key in RUNNER_KEYS}


def command_of(out: Path) -> str:
    """The command that trains the config in a work dir."""
    return shlex.join(['simmim', 'train', str(out / 'config.py'), '--work-dir', str(out)])


def in_docstring(text: str) -> str:
    """Text as it is written between triple quotes."""
    return text.replace('\\', '\\\\').replace('"', '\\"')


def print_summary(cfg: Config, images: int, fit: Fit, devices: int, epochs: int) -> None:
    """Print batch size, learning rate (scaled from the base batch size of the config) and length of the training."""
    total = fit.batch * devices
    rate, base_batch = cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size
    memory = '' if fit.gigabytes is None else f'; a step needs about {fit.gigabytes:.1f} of {fit.free:.1f} GB'
    limited = fit.by_images and images >= FEW_ITERATIONS * total
    why = f' (few images: {FEW_ITERATIONS} iterations per epoch at least)' if limited else ''
    print(f'batch:   {devices} x {fit.batch} = {total} images{why}{memory}')
    print(f'rate:    {rate * total / base_batch:.3g} = {rate:g} x {total} / {base_batch}')
    workers, iterations = default_workers(devices), images // total
    print(
        f'length:  {epochs} epochs of {iterations} iterations over {images:,} images, {epochs * iterations:,} in all, '
        f'{workers} worker{"s" if workers > 1 else ""} per process'
    )
    if fit.rate is not None:
        seconds = epochs * iterations * total / (fit.rate * devices)
        print(
            f'time:    about {_duration(seconds)}, at {fit.rate * devices:.3g} images/s measured here in one step, '
            'without reading the images'
        )


def _duration(seconds: float) -> str:
    """In whole minutes, up to two hours; in hours, up to three days; in days."""
    units = (('minute', 60, 120), ('hour', 3600, 72), ('day', 86400, math.inf))
    counts = [(max(1, round(seconds / length)), unit, most) for unit, length, most in units]
    count, unit = next((count, unit) for count, unit, most in counts if count <= most)
    return f'{count} {unit}{"s" if count > 1 else ""}'


def start(path: Path, args: argparse.Namespace) -> None:
    """Print the equivalent call of `dist_train.sh`, and train.

    Args:
        path: The config, in its work dir.
        args: Arguments of the command.
    """
    flags = ['--work-dir', str(path.parent), *['--resume'] * args.resume]
    script = ['bash', str(TOOLS / 'dist_train.sh'), str(path), str(args.devices), *flags]
    own = (ROOT / '.venv/bin/python').absolute() == Path(sys.executable).absolute()  # the default of the script
    print(f'the same: {"" if own else f"PYTHON={shlex.quote(sys.executable)} "}{shlex.join(script[1:])}', flush=True)
    if args.dry_run:
        return
    if args.devices > 1:
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', script)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    train.run(parser.parse_args([str(path), *flags]))
