"""What pretraining is worth: fine-tuning from a pretrained checkpoint against training from scratch, tuned alike."""

import copy
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from tqdm import tqdm

from simmim_plugin.checkpoints.files import NOTE, save_file
from simmim_plugin.config import apply_options, load_config
from simmim_plugin.evaluation.probes import LabelledFolder
from simmim_plugin.experiments.report import METRICS
from simmim_plugin.experiments.runs import TOOLS, Stages, last_checkpoint, last_scalar, pretrain_config
from simmim_plugin.registry import build_part
from simmim_plugin.utils.configs import innermost, training_data
from simmim_plugin.utils.files import read_json, write_json

ROWS = ('scratch', 'scratch, layer decay', 'pretrained')
PROBED = ('scratch', 'pretrained')  # the features of both kinds of scratch are the same
HELD_OUT_SEED = 1  # of the fifth of the training images that learning rates are chosen on
PART_TUNED = 0.8
PROBE_ENDS = {'top1': '', 'balanced': '_balanced'}


@dataclass(frozen=True)
class Settings:
    """A comparison.

    Args:
        out: Folder of everything.
        data_root: Folder with train/ and val/, each with a folder per class. Pretraining sees train/ without labels.
        pretrain: Config of the pretraining.
        finetune: Share of the training labels -> config of the fine-tuning with them, see `label_shares`.
        seeds: Of pretraining, fine-tuning and the choice of few labels.
        rates: Learning rates that all rows choose from.
        options: `--cfg-options` of pretraining and fine-tuning; the training data is named without its `FewLabels`.
        tuning_share: Share of the epochs that a trial of a learning rate trains for.
    """

    out: Path
    data_root: str
    pretrain: str
    finetune: Mapping[float, str]
    seeds: Sequence[int]
    rates: Sequence[float]
    options: Mapping[str, Any]
    tuning_share: float = 2 / 3


def label_shares(paths: Sequence[str], data_root: str) -> dict[float, str]:
    """Share of the training labels of each fine-tuning config: its `FewLabels` says it, and without one it is all.

    Args:
        paths: The configs.
        data_root: As in `Settings`.

    Raises:
        ValueError: A config of another kind, or two of the same share.
    """
    shares: dict[float, str] = {}
    for path in paths:
        cfg = load_config(path, {'data_root': data_root})
        if 'head' not in cfg.get('model', {}) or not cfg.get('train_dataloader') or not cfg.get('val_dataloader'):
            raise ValueError(f'--finetune {path} is no config of fine-tuning with a head and a val_dataloader')
        schedules: Any = cfg.get('param_scheduler') or []
        if not isinstance(schedules, Sequence) or not schedules or 'warmup' not in schedules[0]:
            raise ValueError(f'--finetune {path}: its first param_scheduler must be a WarmupCosineLR, in a list')
        data = cfg.train_dataloader.dataset
        if 'dataset' in data and ('fraction' not in data or data.get('rest') or 'dataset' in data.dataset):
            raise ValueError(f'--finetune {path}: its training data may be reduced by a FewLabels, not by {data.type}')
        if 'data_prefix' not in innermost(data) or 'data_prefix' not in innermost(cfg.val_dataloader.dataset):
            raise ValueError(
                f'--finetune {path}: its data must be a CustomDataset with data_prefix, a folder per class'
            )
        share = float(data.get('fraction', 1.0))
        if not 0 < share <= 1:
            raise ValueError(f'--finetune {path}: fraction={share:g} of its FewLabels is outside (0, 1]')
        if share in shares:
            raise ValueError(f'--finetune {path} and {shares[share]} have the same share of labels, {share:g}')
        shares[share] = path
    return shares


def compare(settings: Settings, stages: Stages) -> dict[str, Any]:
    """Pretrain, choose learning rates, fine-tune and probe; what is done already is not done again.

    From scratch there are two rows, without and with the layer decay of the pretrained one: it is made for pretrained
    layers, but with a short budget it may help without them, too, and would then pass for a gain of the pretraining.

    Each row chooses its rate, for each share of labels, by the top-1 accuracy on a fifth of the training images that
    the trials do not train on, with the first seed and less epochs. The validation images take no part in it.

    Args:
        settings: What to compare.
        stages: How to run trainings.

    Returns:
        `rates`: row -> share -> rate -> accuracy of the trial; `runs`: row -> share -> one dict per seed with `top1`,
        `balanced`, `rate` and `seconds`, and with few labels `rest`, the metrics on the training images that the run
        did not train on: more images than for validation, so less noise; `probes`: row -> one dict per seed, names as
        `run_probes` has them, twice (`..._balanced`); `pretrain_seconds`.

    Raises:
        ValueError: The configs do not go together, or results of other settings in `out`.
        RuntimeError: A run failed; the message names its log.
    """
    out, seeds = settings.out, settings.seeds
    pretrain = {seed: _pretraining(settings, seed) for seed in seeds}
    tuned = {(row, share, rate): _finetune_config(settings, row, share, rate, seeds[0], trial=True)
             for row in ROWS for share in settings.finetune for rate in settings.rates}  # fmt: skip
    LabelledFolder(settings.data_root)  # raises for a folder of another kind
    with tqdm(
        total=len(seeds) * (1 + len(PROBED) + len(ROWS) * len(settings.finetune)) + len(tuned), unit='stage'
    ) as progress:
        seconds = stages.run_all(
            {s: functools.partial(stages.train, *found) for s, found in pretrain.items()}, progress
        )
        trials = stages.run_all(
            {
                key: functools.partial(_finetune, cfg, out / 'trials' / _name(*key), stages)
                for key, cfg in tuned.items()
            },
            progress,
        )
        rates: dict[str, dict[float, dict[float, float]]] = {row: {} for row in ROWS}
        for (row, share, rate), result in trials.items():
            rates[row].setdefault(share, {})[rate] = result['top1']
        best = {(row, share): max(found, key=found.__getitem__) for row in ROWS for share, found in rates[row].items()}
        tasks = {}
        for seed in seeds:
            for (row, share), rate in sorted(best.items(), key=lambda item: -item[0][1]):
                cfg = _finetune_config(settings, row, share, rate, seed)
                folder = out / 'finetune' / f'{_name(row, share, rate)}_seed_{seed}'
                tasks[row, share, seed] = functools.partial(_finetune, cfg, folder, stages, rest=share < 1)
        runs = stages.run_all(tasks, progress)
        probes = stages.run_all(
            {(row, seed): functools.partial(_probe, settings, row, seed, stages) for row in PROBED for seed in seeds},
            progress,
        )
    return dict(
        rates=rates,
        runs={
            row: {
                share: [dict(seed=s, rate=best[row, share], **runs[row, share, s]) for s in seeds]
                for share in settings.finetune
            }
            for row in ROWS
        },
        probes={row: [dict(seed=s, **probes[row, s]) for s in seeds] for row in PROBED},
        pretrain_seconds=list(seconds.values()),
    )


def _name(row: str, share: float, rate: float) -> str:
    return f'{row.replace(", ", "_").replace(" ", "_")}_{100 * share:g}pct_lr{rate:g}'


def _pretraining(settings: Settings, seed: int) -> tuple[Config, Path]:
    """Config and work dir of the pretraining with a seed."""
    images = str(Path(settings.data_root) / 'train')
    cfg = pretrain_config(settings.pretrain, images, seed, settings.options)
    return cfg, settings.out / 'pretrain' / f'seed_{seed}'


def _finetune_config(settings: Settings, row: str, share: float, rate: float, seed: int, trial: bool = False) -> Config:
    """Config of one fine-tuning; a trial trains on four fifths of the training images and is judged on the rest."""
    cfg = load_config(settings.finetune[share], {'data_root': settings.data_root})
    cfg.train_dataloader.dataset = innermost(cfg.train_dataloader.dataset)  # few labels are chosen below, by the seed
    apply_options(cfg, settings.options)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.randomness.seed = seed
    epochs = cfg.train_cfg.max_epochs
    train = cfg.train_dataloader.dataset
    if trial:
        epochs = max(1, round(epochs * settings.tuning_share))
        innermost(cfg.val_dataloader.dataset).data_prefix = train.data_prefix
        cfg.val_dataloader.dataset = _few(cfg.val_dataloader.dataset, PART_TUNED, HELD_OUT_SEED, rest=True)
        train = _few(train, PART_TUNED, HELD_OUT_SEED)
    cfg.train_dataloader.dataset = _few(train, share, seed) if share < 1 else train
    schedule = cfg.param_scheduler[0]
    schedule.warmup, schedule.end = max(1, epochs * schedule.warmup // schedule.end), epochs
    cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = epochs
    cfg.default_hooks.checkpoint.update(interval=epochs, save_best=None)
    cfg.optim_wrapper.optimizer.lr = rate
    if row == 'scratch':
        cfg.optim_wrapper.paramwise_cfg = None
    if row == 'pretrained':
        pretrained, folder = _pretraining(settings, seed)
        cfg.load_from = str(last_checkpoint(folder, pretrained))
    return cfg


def _few(dataset: Any, fraction: float, seed: int, **kwargs: Any) -> dict[str, Any]:
    return dict(type='simmim_plugin.FewLabels', fraction=fraction, seed=seed, **kwargs, dataset=dataset)


def _finetune(cfg: Config, folder: Path, stages: Stages, rest: bool = False) -> dict[str, Any]:
    seconds = stages.train(cfg, folder)
    found: dict[str, Any] = {name: last_scalar(folder, key) for name, key in METRICS.items()}
    if rest:
        found['rest'] = _judge_rest(cfg, folder, stages)
    return {**found, 'seconds': seconds}


def _judge_rest(cfg: Config, folder: Path, stages: Stages) -> dict[str, float]:
    """Metrics on the images that FewLabels left out of the training data."""
    done = folder / 'rest.json'
    if not done.is_file():
        cfg = copy.deepcopy(cfg)
        few = cfg.train_dataloader.dataset
        data = innermost(cfg.val_dataloader.dataset)
        data.data_prefix = innermost(few).data_prefix
        cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
        cfg.test_dataloader.dataset = _few(data, few.fraction, few.seed, rest=True)
        path, work_dir = folder / 'rest.py', folder / 'rest'
        path.write_text(cfg.pretty_text, encoding='utf-8')
        shutil.rmtree(work_dir, ignore_errors=True)  # of an interrupted call
        checkpoint = last_checkpoint(folder, cfg)
        stages.call(
            [str(TOOLS / 'test.py'), str(path), str(checkpoint), '--work-dir', str(work_dir)], folder / 'rest.log'
        )
        (scores,) = work_dir.glob('*/*.json')
        write_json(done, {name: read_json(scores)[key] for name, key in METRICS.items()})
    return read_json(done)


def _probe(settings: Settings, row: str, seed: int, stages: Stages) -> dict[str, float]:
    """Probes of every block; of a model without training, too, which shows what the architecture gives by itself."""
    path = settings.out / 'probes' / f'{row}_seed_{seed}.json'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg, folder = _pretraining(settings, seed)
        checkpoint = last_checkpoint(folder, cfg)
        if row == 'scratch':
            torch.manual_seed(seed)
            note = dict(model=cfg.model.to_dict(), pipeline=[dict(t) for t in training_data(cfg).pipeline])
            checkpoint = path.with_suffix('.pth')
            save_file({'state_dict': build_part(cfg.model).state_dict(), NOTE: note}, checkpoint)
        command = [str(TOOLS / 'probe.py'), str(checkpoint), settings.data_root, '--blocks', 'all', '--workers', '0']
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        stages.call([*command, '--device', device, '--out', str(path)], path.with_suffix('.log'))
    scores = read_json(path)
    return {f'{name}{end}': score[key] for name, score in scores.items() for key, end in PROBE_ENDS.items()}
