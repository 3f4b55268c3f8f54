"""Run commands like a user."""

import atexit
import json
import multiprocessing
import os
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from mmengine.utils import ManagerMixin

from helpers.paths import ROOT
from simmim_plugin.cli import main

SIMMIM = (sys.executable, '-c', 'from simmim_plugin.cli import main; main()')
TOOLS = ROOT / 'tools'

RUN = [
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
SMALL = [
    'model.backbone.arch.embed_dims=32',
    'model.backbone.arch.num_layers=2',
    'model.backbone.arch.num_heads=2',
    *RUN,
]
TIMEOUT = 500  # seconds


def run(*command: object, cwd: Path | None = None, ok: bool = True) -> str:
    """Run a command; returns its output, both streams."""
    code, output, errors = run_streams(*command, cwd=cwd)
    assert (code == 0) == ok, (output + errors)[-3000:]
    return output + errors


def run_streams(*command: object, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
    """Run a command; its exit code, and what it wrote to stdout and stderr.

    A `simmim` command or a tool, ours or a framework's, runs in a process forked from this one, which has imported
    PyTorch and MMEngine: it starts seconds sooner, and what the test has monkeypatched holds in it. All else is a new
    process, and these, too, where a fork is not safe: after CUDA has started, or with threads of PyTorch.
    """
    words = [str(word) for word in command]
    environment = {'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment}
    with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as errors:
        if _is_ours(words) and torch.get_num_threads() == 1 and not torch.cuda.is_initialized():
            process = multiprocessing.get_context('fork').Process(
                target=_in_child, args=(words, cwd, environment, output, errors)
            )
            process.start()
            process.join(TIMEOUT)
            code = process.exitcode
            if code is None:
                process.kill()
                process.join()
        else:
            environment = {**os.environ, **environment}
            code = subprocess.run(
                words, cwd=cwd, env=environment, stdout=output, stderr=errors, check=False, timeout=TIMEOUT
            ).returncode
        output.seek(0)
        errors.seek(0)
        printed = output.read(), errors.read()
    assert code is not None, f'{words} ran longer than {TIMEOUT} s: {printed}'
    return code, *printed


def _is_ours(words: Sequence[str]) -> bool:
    script = Path(words[1])
    return tuple(words[:3]) == SIMMIM or (
        words[0] == sys.executable and (script.parent == TOOLS or '.mim' in script.parts)
    )


def _in_child(words: list[str], cwd: Path | None, environment: dict[str, str], output: IO, errors: IO) -> None:
    """Run a command as a new process would."""
    for number, (name, file) in enumerate((('stdout', output), ('stderr', errors)), 1):
        os.dup2(file.fileno(), number)
        setattr(sys, name, os.fdopen(number, 'w', closefd=False))
    atexit._clear()
    os.environ.update(environment)
    sys.path[:0] = [folder for folder in os.environ.get('PYTHONPATH', '').split(os.pathsep) if folder]
    if cwd is not None:
        os.chdir(cwd)
    torch.set_num_threads(1)
    torch.manual_seed(67280421310721)  # PyTorch's default
    random.seed()
    np.random.seed()
    for kind in ManagerMixin.__subclasses__():  # loggers, message hubs, visualisers, the default scope
        kind._instance_dict.clear()
    try:
        if words[1] == '-c':
            sys.argv = ['-c', *words[3:]]
            main()
        else:
            sys.argv = words[1:]
            sys.path.insert(0, str(TOOLS))
            runpy.run_path(words[1], run_name='__main__')
    finally:
        atexit._run_exitfuncs()


def train(images: Path, work_dir: Path, *options: str, config='simmim_vit-tiny_folder', flags=(), **kwargs) -> str:
    return run(
        sys.executable, TOOLS / 'train.py', ROOT / f'configs/{config}.py', '--work-dir', work_dir, *flags,
        '--cfg-options', f'data_root={images}', *SMALL, *options, **kwargs,
    )  # fmt: skip


def scalars(work_dir: Path) -> list[dict]:
    """Logged training iterations of all runs in a work dir, oldest first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]
