"""Compare detection and segmentation with and without the weights of a pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
from matplotlib.figure import Figure
from mmengine.config import Config

from simmim_plugin.config import fill_in_data, load_config
from simmim_plugin.experiments import report, runs
from simmim_plugin.experiments.runs import Stages, last_checkpoint, last_scalar
from simmim_plugin.utils.files import write_json
from simmim_plugin.visualization.curves import read_scalars

ROWS = ('scratch', 'pretrained')
# Name in the log -> name in the table, and the factor to percent.
METRICS = {'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100), 'mIoU': ('mIoU', 1)}
NUM_PICTURES = 4


@dataclass(frozen=True)
class Settings(runs.Settings):
    """A comparison for detection and segmentation.

    Args:
        pretrain: Pretraining config.
        configs: Configs of MMDetection or MMSegmentation with a backbone of the same size.
    """

    pretrain: str
    configs: Sequence[str]


def compare(settings: Settings, stages: Stages) -> dict[str, Any]:
    """Pretrain, train every config from scratch and pretrained, and draw predictions, except for what is done.

    The rows differ only in `load_from`. Learning rate and layer decay are those of the config, meant for pretrained
    layers; neither row tunes them.

    Returns:
        `runs`: config -> row -> one dict per seed with the metrics in percent, `curve` (their values at each
        evaluation, with `step`), `loss` (pairs of iteration and loss) and `seconds`; `pretrain_seconds`.

    Raises:
        ValueError: A config is of another kind, or `out` has results of other settings.
        RuntimeError: A run failed; the message names its log.
    """
    out, seeds, configs = settings.out, settings.seeds, runs.by_name(settings.configs)
    pretrain = {s: (settings.pretrain_config(settings.pretrain, s), out / 'pretrain' / f'seed_{s}') for s in seeds}
    loaded = {(row, s): last_checkpoint(*pretrain[s]) if row == 'pretrained' else None for row in ROWS for s in seeds}
    tasks = {
        (name, row, s): (_config(path, settings.data_root, s, loaded[row, s]), out / name / f'{row}_seed_{s}')
        for name, path in configs.items()
        for row in ROWS
        for s in seeds
    }
    drawn = {task: arguments for task, arguments in tasks.items() if task[-1] == seeds[0]}
    seconds = stages.run_all('pretraining', Stages.train, pretrain)
    found = stages.run_all('training', _train, tasks)
    stages.run_all('predictions', _draw, drawn)
    return dict(
        runs={name: {row: [dict(seed=s, **found[name, row, s]) for s in seeds] for row in ROWS} for name in configs},
        pretrain_seconds=list(seconds.values()),
    )


def _config(path: str, data_root: str, seed: int, checkpoint: Path | None) -> Config:
    cfg = load_config(path, {'data_root': data_root})
    loaders = [cfg.get(f'{part}_dataloader') for part in ('train', 'val', 'test')]
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or not all(loaders):
        raise ValueError(f'{path} is no config of MMDetection or MMSegmentation with train, val and test data')
    for part in ('val', 'test'):
        metrics: Any = cfg[f'{part}_evaluator']
        for metric in metrics if isinstance(metrics, Sequence) else [metrics]:
            if 'ann_file' in metric:
                metric.ann_file = None  # None: that of the data
    fill_in_data(cfg)
    cfg.randomness = dict(seed=seed)
    cfg.load_from = None if checkpoint is None else str(checkpoint)
    return cfg


def _train(stages: Stages, cfg: Config, folder: Path) -> dict[str, Any]:
    seconds = stages.train(cfg, folder)
    lines = read_scalars(folder)
    found = {key: name for key, name in METRICS.items() if any(key in line for line in lines)}
    if not found:
        raise RuntimeError(f'{folder} has none of {", ".join(METRICS)} in its logs')
    curve = {  # a resumed run evaluates some steps again: the last one counts
        line['step']: {'step': line['step'], **{name: factor * line[key] for key, (name, factor) in found.items()}}
        for line in lines
        if set(found) <= set(line)
    }
    loss = {line['iter']: line['loss'] for line in lines if 'loss' in line}
    last = {name: factor * last_scalar(folder, key) for key, (name, factor) in found.items()}
    return {**last, 'curve': [curve[step] for step in sorted(curve)], 'loss': sorted(loss.items()), 'seconds': seconds}


def _draw(stages: Stages, cfg: Config, folder: Path) -> None:
    """Draw ground truth and predictions of every validation image with the framework's visualization hook."""
    drawn, done = folder / 'drawn', folder / 'drawn.json'
    if not done.is_file():
        log = folder.with_name(f'{folder.name}_drawn.log')
        options = ('--cfg-options', 'default_hooks.visualization.draw=True')
        stages.test(Path(f'{folder}.py'), last_checkpoint(cfg, folder), drawn, log, *options)
        write_json(done, {'pictures': len(list(drawn.glob('*/vis_data/vis_image/*.png')))})


def table(results: Mapping[str, Any]) -> str:
    """Markdown table of the results of `compare`, with the gain per seed."""
    rows = []
    for config, by_row in results['runs'].items():
        rows += [report.Row((config, row), found) for row, found in by_row.items()]
        rows.append(report.Row((config, 'difference, by seed'), by_row['pretrained'], by_row['scratch']))
    return report.table(('config', 'start'), rows, {n: n for n, _ in METRICS.values()}, {'seconds': 'minutes'})


def plot(results: Mapping[str, Any], out: Path) -> None:
    """Plot training loss and metrics of every run over its iterations, one line of panels per config."""
    shown = {
        config: [n for n, _ in METRICS.values() if n in by_row['scratch'][0]]
        for config, by_row in results['runs'].items()
    }
    columns = 1 + max(map(len, shown.values()))
    figure = Figure(figsize=(4 * columns, 3.2 * len(shown)), layout='constrained')
    panels = figure.subplots(len(shown), columns, squeeze=False)
    for line, (config, names) in zip(panels, shown.items()):
        line[0].set(title=config, ylabel='training loss', xlabel='iteration')
        for panel, name in zip(line[1:], names):
            panel.set(ylabel=f'{name} on the validation images, %', xlabel='evaluated at (epoch or iteration)')
        for panel in line[1 + len(names) :]:
            panel.set_axis_off()
        for i, row in enumerate(ROWS):
            for j, run in enumerate(results['runs'][config][row]):
                style = dict(color=f'C{i}', alpha=0.7, label=None if j else row)
                line[0].plot(*zip(*run['loss']), **style)
                for panel, name in zip(line[1:], names):
                    panel.plot([c['step'] for c in run['curve']], [c[name] for c in run['curve']], 'o-', **style)
        for panel in line:
            panel.grid(alpha=0.3)
        line[0].legend()
    figure.savefig(out, dpi=110)


def draw_sheets(settings: Settings) -> list[Path]:
    """Combine some pictures of the first seed per config: truth and prediction, from scratch and pretrained.

    Returns:
        One picture per config, in `out`.
    """
    sheets = []
    for name in runs.by_name(settings.configs):
        figure = Figure(figsize=(14, 3.6 * NUM_PICTURES), layout='constrained')
        panels = figure.subplots(NUM_PICTURES, len(ROWS), squeeze=False)
        for column, row in zip(panels.T, ROWS):
            folder = settings.out / name / f'{row}_seed_{settings.seeds[0]}' / 'drawn'
            pictures = sorted(folder.glob('*/vis_data/vis_image/*.png'), key=lambda p: int(p.stem.rsplit('_', 1)[-1]))
            count = min(NUM_PICTURES, len(pictures))
            for i, panel in enumerate(column):
                panel.set_axis_off()
                if i < count:
                    panel.imshow(matplotlib.image.imread(pictures[i * len(pictures) // NUM_PICTURES]))
                    panel.set_title(f'{row}: truth | prediction', fontsize=9)
        sheets.append(settings.out / f'{name}.png')
        figure.savefig(sheets[-1], dpi=70)
    return sheets
