"""Time MMEngine's loop with our hooks against a bare loop, and a complete run from JPEGs against its step."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from torch.utils.data import Dataset
from tqdm import tqdm

from simmim_plugin.apis import train
from simmim_plugin.benchmark.data import write_photos
from simmim_plugin.benchmark.timing import in_ms, spread
from simmim_plugin.config import load_config
from simmim_plugin.engine.runners.mmengine_internals import end_workers
from simmim_plugin.registry import DATASETS
from simmim_plugin.utils.arguments import whole

WARM_UP = 5
PREFETCH = 2  # batches that each worker reads ahead, PyTorch's default
TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


@DATASETS.register_module()
class FixedSample(Dataset[Any]):
    """The same image and mask at every index, so that loading takes no time.

    Args:
        size: Side in pixels.
        grid: Side in patches.
        length: Length of the data set.
    """

    def __init__(self, size: int, grid: int, length: int) -> None:
        mask = torch.zeros(grid, grid, dtype=torch.uint8)
        mask[: grid // 2] = 1
        self.sample = dict(inputs=torch.zeros(3, size, size, dtype=torch.uint8), mask=mask)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.sample


class _Clock(Hook):
    """Record when iterations end.

    Args:
        waits: Iterations, counted from 1, after which to synchronise the device.
    """

    priority = 'LOWEST'

    def __init__(self, waits: tuple[int, ...] = ()) -> None:
        self.waits = waits
        self.ends: list[float] = []

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        if len(self.ends) + 1 in self.waits and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure_runner(config: str, iterations: int, repeats: int) -> dict[str, Any]:
    """Measure the overhead of the Runner per iteration: train a tiny model with it and with a bare loop.

    Args:
        config: Pretraining config whose hooks are measured.
        iterations: Iterations per repeat.
        repeats: Repeats of both.

    Returns:
        `rows` of name and milliseconds per iteration: 'Runner', 'bare loop', and 'overhead', their difference in each
        repeat. The time of a repeat is the mean of its iterations, since iterations that log cost more.
    """
    means: dict[str, list[float]] = {'Runner': [], 'bare loop': [], 'overhead': []}
    for turn in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            runner = train.build_runner(_tiny(config, iterations + WARM_UP, folder))
            clock = _Clock()
            runner.register_hook(clock)
            runner.train()
            bare = _bare_loop(runner)
        if turn:  # the first one warms up
            seconds = [(ends[-1] - ends[WARM_UP]) / (len(ends) - WARM_UP - 1) for ends in (clock.ends, bare)]
            for values, value in zip(means.values(), (*seconds, seconds[0] - seconds[1])):
                values.append(value)
    return dict(rows=[dict(name=name, **in_ms(spread(values))) for name, values in means.items()])


def _bare_loop(runner: Any) -> list[float]:
    """Train the same model on the same data with the same optimiser in a minimal loop."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    ends = []
    for batch in runner.train_dataloader:
        with runner.optim_wrapper.optim_context(model):  # autocast, if the Runner uses it
            loss = model(**model.data_preprocessor(batch, True), mode='loss')['loss']
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return ends


def _tiny(config: str, iterations: int, folder: str) -> Config:
    cfg = load_config(config)
    size, patch, batch = 32, 16, 2
    cfg.model.backbone.update(arch=TINY, img_size=size, patch_size=patch)
    cfg.train_dataloader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset = dict(type='FixedSample', size=size, grid=size // patch, length=iterations * batch)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.custom_hooks = []
    cfg.log_level = 'ERROR'
    cfg.experiment_name = Path(folder).name  # else two runs of the same second share MMEngine's instances
    return train.prepare(cfg, config, folder)


def measure_end_to_end(
    config: str, images: int, batch: int, workers: int, iterations: int, repeats: int, amp: bool, compiled: bool
) -> dict[str, Any]:
    """Measure a complete run, from JPEGs of 500 x 375 px through the Runner, and its step alone, in turns.

    Args:
        config: Pretraining config.
        images: Number of JPEGs to write.
        batch: Images per iteration.
        workers: Worker processes.
        iterations: Iterations of both, after the warm-up.
        repeats: Repeats of both.
        amp: bfloat16 autocast, also on CPUs.
        compiled: Compile the forward pass.

    Returns:
        `run` and `step`: seconds per iteration as in `spread`; `share_of_step`: rate of the run relative to that of
        the step, median of the repeats, with `share_of_step_min` and `share_of_step_max`; `batch` and `workers`.

    Raises:
        ValueError: Too few iterations: the batches that workers read ahead would feed most of them.
    """
    queued = PREFETCH * workers
    whole('iterations', iterations, max(1, 4 * queued), hint=f'{workers} workers read {queued} batches ahead')
    warm_up = WARM_UP + queued
    total = iterations + warm_up
    runs: list[float] = []
    steps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, 'photos')
        photos.mkdir()
        write_photos(photos, (500, 375), images)
        for turn in tqdm(range(repeats), desc='measure', unit='turn'):
            work_dir = Path(folder, f'run{turn}')
            cfg = load_config(config, {'data_root': str(photos)})
            cfg.train_dataloader.update(batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
            cfg.train_dataloader.dataset = dict(
                type='RepeatDataset', times=-(-total * batch // images), dataset=cfg.train_dataloader.dataset
            )
            cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=total)
            cfg.param_scheduler, cfg.custom_hooks, cfg.log_level = [], [], 'ERROR'
            cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
            cfg.experiment_name = f'{Path(folder).name}_{turn}'
            runner = train.build_runner(train.prepare(cfg, config, str(work_dir), amp=amp, compiled=compiled))
            clock, step_clock = _Clock((warm_up, total)), _Clock((warm_up, total))
            runner.register_hook(clock)
            runner.train()
            data = next(iter(runner.train_dataloader))
            for _ in range(total):
                runner.model.train_step(data, optim_wrapper=runner.optim_wrapper)
                step_clock.after_train_iter()
            for seconds, ends in ((runs, clock.ends), (steps, step_clock.ends)):
                seconds.append((ends[-1] - ends[warm_up - 1]) / iterations)
            end_workers(runner.train_dataloader)
    shares = [step / run for run, step in zip(runs, steps)]
    return dict(
        run=spread(runs), step=spread(steps), batch=batch, workers=workers, share_of_step=statistics.median(shares),
        share_of_step_min=min(shares), share_of_step_max=max(shares),
    )  # fmt: skip
