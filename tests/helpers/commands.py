"""Run commands like a user."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

SIMMIM = (sys.executable, '-c', 'from simmim_plugin.cli import main; main()')

SMALL = [
    'model.backbone.arch.embed_dims=32',
    'model.backbone.arch.num_layers=2',
    'model.backbone.arch.num_heads=2',
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'auto_scale_lr.base_batch_size=4',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
    'custom_hooks.0.interval=1',
    'custom_hooks.0.num_images=2',
    'custom_hooks.0.num_measured=4',
]


def run(*command: object, cwd: object = None, ok: bool = True) -> str:
    """Run a command; returns its output, both streams."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    output = result.stdout + result.stderr
    assert (result.returncode == 0) == ok, output[-3000:]
    return output


def train(images: Path, work_dir: Path, *options: str, config='simmim_vit-tiny_folder', flags=(), **kwargs) -> str:
    return run(
        sys.executable, ROOT / 'tools/train.py', ROOT / f'configs/{config}.py', '--work-dir', work_dir, *flags,
        '--cfg-options', f'data_root={images}', *SMALL, *options, **kwargs,
    )  # fmt: skip


def scalars(work_dir: Path) -> list[dict]:
    """Logged training iterations of all runs in a work dir, oldest first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]
