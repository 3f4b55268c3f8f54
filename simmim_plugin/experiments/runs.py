"""Run many trainings as subprocesses, in parallel and resumable; shared by all comparisons."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

from simmim_plugin.config import apply_options, load_config
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import training_data, without_variables
from simmim_plugin.utils.errors import PARENT
from simmim_plugin.utils.files import check_writable, read_json, write_json
from simmim_plugin.utils.random_state import LARGEST_SEED
from simmim_plugin.utils.resources import TOOLS
from simmim_plugin.visualization.curves import read_scalars


@dataclass(frozen=True)
class Settings:
    """Settings shared by the runs of a comparison.

    Args:
        out: Output folder.
        data_root: Folder of the labelled data.
        images: Folder of the images to pretrain on; labels are not used.
        seeds: Seeds of pretraining, training and the choice of few labels.
        options: `--cfg-options` of the pretraining.
    """

    out: Path
    data_root: str
    images: str | Path
    seeds: Sequence[int]
    options: Mapping[str, Any]

    def pretrain_config(self, path: str, seed: int, resize: Callable[[Config], object] | None = None) -> Config:
        """Load a pretraining config; `resize` changes it before the options are applied.

        Raises:
            ValueError: It is not the config of a SimMIM pretraining with `max_epochs`.
        """
        cfg = load_config(path)
        kind = str(cfg.get('model', {}).get('type')).split('.')[-1]
        if kind != 'SimMIM' or 'max_epochs' not in cfg.get('train_cfg', {}):
            raise ValueError(
                f'{path} is no config of a SimMIM pretraining with max_epochs, such as configs/simmim_vit-b.py'
            )
        if resize:
            resize(cfg)
        apply_options(cfg, self.options)
        cfg.data_root = training_data(cfg).data_root = str(self.images)
        cfg.randomness.seed = seed
        return cfg


@dataclass
class Stages:
    """Runs trainings and other tasks in parallel on one machine.

    Args:
        jobs: Number of tasks at a time; each gets its share of the cores.
        amp: bfloat16 autocast.
    """

    jobs: int = 1
    amp: bool = False
    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def run_all(self, name: str, function: Callable[..., Any], tasks: Mapping[Any, Sequence[Any]]) -> dict[Any, Any]:
        """Call `function(self, *arguments)` for the arguments of each task, `jobs` at a time.

        Args:
            name: Label of the progress bar.
            function: Function, or method of this class, to call.
            tasks: Key -> arguments.

        Returns:
            Key -> result, in the order of the tasks. If a call fails, all subprocesses are stopped.
        """
        results = {}
        with tqdm(desc=name, total=len(tasks), unit='run') as progress, ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(function, self, *arguments): key for key, arguments in tasks.items()}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in tuple(self._processes):
                    process.terminate()
                raise
        return {key: results[key] for key in tasks}

    def train(self, cfg: Config, folder: Path) -> float:
        """Train a config in a subprocess unless it is done; an interrupted training is resumed.

        `<folder>.py` is the config, `<folder>.log` the output and `<folder>.json` the time, written at the end.

        Args:
            cfg: Config to train.
            folder: Its work dir.

        Returns:
            Seconds of the last call; time before an interruption is not counted.

        Raises:
            ValueError: The folder belongs to another config, or the checkpoint hook cannot adapt `load_from`.
            RuntimeError: The training failed, or did not load the weights of `load_from`; the message names its log.
        """
        path, done = folder.with_name(f'{folder.name}.py'), folder.with_name(f'{folder.name}.json')
        text = f'# {"bfloat16 autocast (--amp)" if self.amp else "float32"}\n{without_variables(cfg.pretty_text)}'
        if path.is_file() and path.read_text(encoding='utf-8') != text:
            raise ValueError(
                f'{path} has other settings than the current ones; choose another --out, or remove {folder}*'
            )
        if done.is_file():
            return read_json(done)['seconds']
        hook = str(cfg.get('default_hooks', {}).get('checkpoint', {}).get('type', 'CheckpointHook'))
        if cfg.get('load_from') and hook.rsplit('.', maxsplit=1)[-1] != 'SimMIMCheckpointHook':
            raise ValueError(
                f'{path.stem}: default_hooks.checkpoint.type is {hook!r}, which loads the weights of a pretraining '
                "only in part or not at all; set it to 'simmim_plugin.SimMIMCheckpointHook'"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
        start = time.monotonic()
        options = ['--work-dir', str(folder), '--resume', *['--amp'] * self.amp]
        log = path.with_suffix('.log')
        self.call([str(TOOLS / 'train.py'), str(path), *options], log)
        if cfg.get('load_from') and 'tensors of load_from' not in log.read_text(encoding='utf-8'):
            raise RuntimeError(f'{path} has load_from={cfg.load_from}, but no weights were loaded (see {log})')
        seconds = round(time.monotonic() - start, 1)
        write_json(done, {'seconds': seconds})
        return seconds

    def call(self, command: Sequence[str], log: Path) -> None:
        """Run a Python program in a subprocess with its share of the cores; append its output to `log`.

        Raises:
            RuntimeError: It failed; the message quotes the program's error and names the log.
        """
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), PARENT: str(os.getpid())}
        with log.open('a', encoding='utf-8') as output:
            before = output.tell()
            process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            self._processes.add(process)
            code = process.wait()
            self._processes.discard(process)
        if code:
            new = log.read_bytes()[before:].decode('utf-8', errors='replace')
            lines = [line for line in new.splitlines() if line.startswith('error: ')]
            raise RuntimeError(f'{command[1]} failed: {lines[-1][7:] if lines else "killed"} (its output: {log})')

    def test(self, config: Path, checkpoint: Path, work_dir: Path, log: Path, *options: str) -> None:
        """Evaluate a checkpoint with tools/test.py in an empty work dir."""
        shutil.rmtree(work_dir, ignore_errors=True)  # left by an interrupted call
        self.call([str(TOOLS / 'test.py'), str(config), str(checkpoint), '--work-dir', str(work_dir), *options], log)


def by_name(paths: Sequence[str]) -> dict[str, str]:
    """Configs by file name without suffix, the name of their rows and folders; ValueError if two are equal."""
    named = {Path(path).stem: path for path in paths}
    if len(named) < len(paths):
        raise ValueError(f'configs must differ in their file names, got {", ".join(paths)}')
    return named


def finetune_config(path: str, data_root: str) -> Config:
    """Load a fine-tuning config; ValueError if it is of another kind."""
    cfg = load_config(path, {'data_root': data_root})
    if 'head' not in cfg.get('model', {}) or not cfg.get('train_dataloader') or not cfg.get('val_dataloader'):
        raise ValueError(f'--finetune {path} is no config of fine-tuning with a head and a val_dataloader')
    return cfg


def last_checkpoint(cfg: Config, folder: Path) -> Path:
    """The last checkpoint of a training in its work dir."""
    loop = cfg.train_cfg
    name = f'epoch_{loop.max_epochs}' if 'max_epochs' in loop else f'iter_{loop.max_iters}'
    return (folder / f'{name}.pth').resolve()


def last_scalar(folder: Path, name: str) -> float:
    """The last value of a metric in the logs of a work dir."""
    values = [line[name] for line in read_scalars(folder) if name in line]
    if not values:
        raise RuntimeError(f'{folder} has no {name} in its logs; remove {folder}* to run it again')
    return float(values[-1])


def check_arguments(args: argparse.Namespace) -> Path:
    """Check the arguments of a comparison; create and return its output folder."""
    check_writable(args.out)
    whole('--jobs', args.jobs, 1)
    for seed in args.seeds:
        whole('--seeds', seed, 0, LARGEST_SEED)
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--seeds={args.seeds} must differ; give each once')
    return Path(args.out)
