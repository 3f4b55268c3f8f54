"""What pretraining is worth for detection and segmentation: the same training with and without the checkpoint."""

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
from matplotlib.figure import Figure
from mmengine.config import Config
from tqdm import tqdm

from simmim_plugin.config import fill_in_data, load_config
from simmim_plugin.experiments.report import mean_and_range
from simmim_plugin.experiments.runs import TOOLS, Stages, last_checkpoint, last_scalar, pretrain_config
from simmim_plugin.utils.files import write_json
from simmim_plugin.visualization.curves import read_scalars

ROWS = ('scratch', 'pretrained')
# Name in the log -> name in the table, and what makes per cent of it.
METRICS = {'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100), 'mIoU': ('mIoU', 1)}
NUM_PICTURES = 4


@dataclass(frozen=True)
class Settings:
    """A comparison.

    Args:
        out: Folder of everything.
        images: Folder of the images to pretrain on.
        data_root: Folder of the labelled data.
        pretrain: Config of the pretraining.
        configs: Configs of MMDetection or MMSegmentation, for a backbone of the same size.
        seeds: Of pretraining and training.
        options: `--cfg-options` of the pretraining.
    """

    out: Path
    images: str
    data_root: str
    pretrain: str
    configs: Sequence[str]
    seeds: Sequence[int]
    options: Mapping[str, Any]


def compare(settings: Settings, stages: Stages) -> dict[str, Any]:
    """Pretrain, train every config from scratch and pretrained, and draw predictions; what is done is not done again.

    The rows differ in `load_from` alone. The rate and the layer decay of the config are not tuned for either; they are
    meant for pretrained layers.

    Args:
        settings: What to compare.
        stages: How to run trainings.

    Returns:
        `runs`: config -> row -> one dict per seed with the metrics in per cent, `curve` (their values at each
        evaluation, with `step`), `loss` (pairs of iteration and loss) and `seconds`; `pretrain_seconds`.

    Raises:
        ValueError: Configs of another kind, or results of other settings in `out`.
        RuntimeError: A run failed; the message names its log.
    """
    out, seeds = settings.out, settings.seeds
    pretrain = {s: pretrain_config(settings.pretrain, settings.images, s, settings.options) for s in seeds}
    loaded = {s: last_checkpoint(out / 'pretrain' / f'seed_{s}', cfg) for s, cfg in pretrain.items()}
    configs = {
        (path, row, s): _config(path, settings.data_root, s, loaded[s] if row == 'pretrained' else None)
        for path in settings.configs
        for row in ROWS
        for s in seeds
    }
    if len({Path(path).stem for path in settings.configs}) < len(settings.configs):
        raise ValueError(f'configs must differ in their file names, got {", ".join(settings.configs)}')
    drawn = [(path, row) for path in settings.configs for row in ROWS]
    with tqdm(total=len(seeds) + len(configs) + len(drawn), unit='stage') as progress:
        seconds = stages.run_all(
            {s: functools.partial(stages.train, cfg, out / 'pretrain' / f'seed_{s}') for s, cfg in pretrain.items()},
            progress,
        )
        runs = stages.run_all(
            {
                (path, row, s): functools.partial(_train, cfg, _folder(out, path, row, s), stages)
                for (path, row, s), cfg in configs.items()
            },
            progress,
        )
        stages.run_all(
            {
                (path, row): functools.partial(
                    _draw, configs[path, row, seeds[0]], _folder(out, path, row, seeds[0]), stages
                )
                for path, row in drawn
            },
            progress,
        )
    return dict(
        runs={
            Path(path).stem: {row: [dict(seed=s, **runs[path, row, s]) for s in seeds] for row in ROWS}
            for path in settings.configs
        },
        pretrain_seconds=list(seconds.values()),
    )


def _folder(out: Path, path: str, row: str, seed: int) -> Path:
    return out / Path(path).stem / f'{row}_seed_{seed}'


def _config(path: str, data_root: str, seed: int, checkpoint: Path | None) -> Config:
    cfg = load_config(path, {'data_root': data_root})
    loaders = [cfg.get(f'{part}_dataloader') for part in ('train', 'val', 'test')]
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or not all(loaders):
        raise ValueError(f'{path} is no config of MMDetection or MMSegmentation with data of training, val and test')
    for part in ('val', 'test'):
        metrics: Any = cfg[f'{part}_evaluator']
        for metric in metrics if isinstance(metrics, Sequence) else [metrics]:
            if 'ann_file' in metric:
                metric.ann_file = None  # that of the data
    fill_in_data(cfg)
    cfg.randomness = dict(seed=seed)
    cfg.load_from = None if checkpoint is None else str(checkpoint)
    return cfg


def _train(cfg: Config, folder: Path, stages: Stages) -> dict[str, Any]:
    seconds = stages.train(cfg, folder)
    lines = read_scalars(folder)
    found = {key: name for key, name in METRICS.items() if any(key in line for line in lines)}
    if not found:
        raise RuntimeError(f'{folder} has none of {", ".join(METRICS)} in its logs')
    curve = {  # an interrupted run evaluates some steps again: the last one counts
        line['step']: {'step': line['step'], **{name: factor * line[key] for key, (name, factor) in found.items()}}
        for line in lines
        if set(found) <= set(line)
    }
    loss = {line['iter']: line['loss'] for line in lines if 'loss' in line}
    last = {name: factor * last_scalar(folder, key) for key, (name, factor) in found.items()}
    return {**last, 'curve': [curve[step] for step in sorted(curve)], 'loss': sorted(loss.items()), 'seconds': seconds}


def _draw(cfg: Config, folder: Path, stages: Stages) -> None:
    """Have the framework's hook draw the truth beside the predictions for every validation image."""
    drawn, done = folder / 'drawn', folder / 'drawn.json'
    if done.is_file():
        return
    shutil.rmtree(drawn, ignore_errors=True)  # of an interrupted call
    loop = cfg.train_cfg
    name = f'epoch_{loop.max_epochs}.pth' if 'max_epochs' in loop else f'iter_{loop.max_iters}.pth'
    command = [str(TOOLS / 'test.py'), f'{folder}.py', str(folder / name), '--work-dir', str(drawn)]
    options = ['--cfg-options', 'default_hooks.visualization.draw=True']
    stages.call([*command, *options], folder.with_name(f'{folder.name}_drawn.log'))
    write_json(done, {'pictures': len(list(drawn.glob('*/vis_data/vis_image/*.png')))})


def table(results: Mapping[str, Any]) -> str:
    """Markdown: mean and range over the seeds of each metric, by config and row, and the gain seed by seed."""
    names = [name for name, _ in METRICS.values()]
    lines = [f'| config | start | {" | ".join(names)} | minutes |', '|---' * (3 + len(names)) + '|']
    for config, by_row in results['runs'].items():
        for row, runs in by_row.items():
            cells = [mean_and_range([run[name] for run in runs if name in run]) for name in names]
            minutes = sum(run['seconds'] for run in runs) / len(runs) / 60
            lines.append(f'| {config} | {row} | {" | ".join(cells)} | {minutes:.1f} |')
        pairs = list(zip(by_row['pretrained'], by_row['scratch']))
        cells = [mean_and_range([a[n] - b[n] for a, b in pairs if n in a and n in b], '+') for n in names]
        lines.append(f'| {config} | difference, by seed | {" | ".join(cells)} |  |')
    return '\n'.join(lines)


def plot(results: Mapping[str, Any], out: Path) -> None:
    """Draw training loss and metrics of every run over its length, a line of panels per config."""
    shown = {config: [n for n, _ in METRICS.values() if n in by_row['scratch'][0]]
             for config, by_row in results['runs'].items()}  # fmt: skip
    columns = 1 + max(map(len, shown.values()))
    figure = Figure(figsize=(4 * columns, 3.2 * len(shown)), layout='constrained')
    panels = figure.subplots(len(shown), columns, squeeze=False)
    for line, (config, names) in zip(panels, shown.items()):
        for panel in line[1 + len(names) :]:
            panel.set_axis_off()
        for i, row in enumerate(ROWS):
            for run in results['runs'][config][row]:
                first = run is results['runs'][config][row][0]
                style = dict(color=f'C{i}', alpha=0.7, label=row if first else None)
                line[0].plot(*zip(*run['loss']), **style)
                for panel, name in zip(line[1:], names):
                    panel.plot([c['step'] for c in run['curve']], [c[name] for c in run['curve']], 'o-', **style)
        line[0].set(title=config, ylabel='training loss', xlabel='iteration')
        for panel, name in zip(line[1:], names):
            panel.set(ylabel=f'{name} on the validation images, %', xlabel='evaluated at (epoch or iteration)')
        for panel in line[: 1 + len(names)]:
            panel.grid(alpha=0.3)
        line[0].legend()
    figure.savefig(out, dpi=110)


def draw_sheets(settings: Settings) -> list[Path]:
    """Put a few of the pictures of the first seed together: truth and prediction, from scratch and pretrained.

    Returns:
        A picture per config, in `out`.
    """
    sheets = []
    for path in settings.configs:
        figure = Figure(figsize=(14, 3.6 * NUM_PICTURES), layout='constrained')
        panels = figure.subplots(NUM_PICTURES, len(ROWS), squeeze=False)
        for j, row in enumerate(ROWS):
            folder = _folder(settings.out, path, row, settings.seeds[0]) / 'drawn'
            pictures = sorted(folder.glob('*/vis_data/vis_image/*.png'), key=lambda p: int(p.stem.rsplit('_', 1)[-1]))
            shown = [pictures[i * len(pictures) // NUM_PICTURES] for i in range(min(NUM_PICTURES, len(pictures)))]
            for i in range(NUM_PICTURES):
                panels[i][j].set_axis_off()
                if i < len(shown):
                    panels[i][j].imshow(matplotlib.image.imread(shown[i]))
                    panels[i][j].set_title(f'{row}: truth | prediction', fontsize=9)
        sheets.append(settings.out / f'{Path(path).stem}.png')
        figure.savefig(sheets[-1], dpi=70)
    return sheets
