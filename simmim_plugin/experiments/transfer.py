"""Compare fine-tuning of a pretrained checkpoint with training from scratch, each at its best learning rate."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from simmim_plugin.checkpoints.files import NOTE, save_file
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.start import TABLES, Start
from simmim_plugin.config import apply_options, load_config
from simmim_plugin.evaluation.probes import LabelledFolder
from simmim_plugin.experiments import runs
from simmim_plugin.experiments.runs import Stages, last_checkpoint, last_scalar
from simmim_plugin.experiments.transfer_tables import ALONE, CONTINUED, PROBE_ENDS, PROBED, ROWS, TRANSFERRED, WITH_INIT
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import number
from simmim_plugin.utils.configs import innermost, training_data, type_name
from simmim_plugin.utils.files import read_json, write_json
from simmim_plugin.utils.resources import TOOLS

METRICS = {'top1': 'accuracy/top1', 'balanced': 'accuracy/balanced'}  # name in the results -> name in the log
HELD_OUT_SEED = 1  # chooses the fifth of the training images that learning rates are chosen on
PART_TUNED = 0.8  # of the training images, on which the trials train


@dataclass(frozen=True)
class Settings(runs.Settings):
    """A comparison for classification, on data with train/ and val/, each with a folder per class.

    The options apply to pretraining and fine-tuning, there to the training data without its `FewLabels`.

    Args:
        pretrain: Pretraining config.
        finetune: Share of the training labels -> config that fine-tunes with them, see `label_shares`.
        rates: Learning rates that each row chooses from.
        tuning_share: Length of the trial of a learning rate, as a share of the epochs.
        init: Weights to transfer. All configs get their architecture, mean and std.
        continued: Pretraining config that continues from `init`.
    """

    pretrain: str
    finetune: Mapping[float, str]
    rates: Sequence[float]
    tuning_share: float = 2 / 3
    init: Start | None = None
    continued: str = ''

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the comparison."""
        return ROWS if self.init is None else WITH_INIT

    @property
    def probed(self) -> tuple[str, ...]:
        """Rows whose features are probed."""
        return PROBED if self.init is None else WITH_INIT

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Rows with a pretraining of their own."""
        return ('pretrained',) if self.init is None else (ALONE, CONTINUED)


def label_shares(paths: Sequence[str], data_root: str) -> dict[float, str]:
    """Share of the training labels that each fine-tuning config uses: that of its `FewLabels`, or 1 without one.

    Args:
        paths: The configs.
        data_root: As in `Settings`.

    Raises:
        ValueError: A config is of another kind, or two have the same share.
    """
    shares: dict[float, str] = {}
    for path in paths:
        name = f'--finetune {path}'
        cfg = runs.finetune_config(path, data_root)
        schedules: Any = cfg.get('param_scheduler') or []
        if not isinstance(schedules, Sequence) or not schedules or 'warmup' not in schedules[0]:
            raise ValueError(f'{name}: its first param_scheduler must be a WarmupCosineLR, in a list')
        data = cfg.train_dataloader.dataset
        if 'dataset' in data and ('fraction' not in data or data.get('rest') or 'dataset' in data.dataset):
            raise ValueError(f'{name}: its training data may be reduced by a FewLabels, not by {data.type}')
        if 'data_prefix' not in innermost(data) or 'data_prefix' not in innermost(cfg.val_dataloader.dataset):
            raise ValueError(f'{name}: its data must be ClassFolders with data_prefix, a folder per class')
        share = float(number(f'{name}: fraction', data.get('fraction', 1.0), 0, 1, 'see FewLabels', ends='(]'))
        if share in shares:
            raise ValueError(f'{name} and {shares[share]} have the same share of labels, {share:g}')
        shares[share] = path
    return shares


def compare(settings: Settings, stages: Stages) -> dict[str, Any]:
    """Pretrain, choose learning rates, fine-tune and probe, except for what is done.

    With `init`, the rows are training from scratch, pretraining on the target's images alone, the weights of `init` as
    they are, and these weights after a pretraining that continues from them on the target's images.

    Without it, two rows train from scratch, without and with the layer decay of the pretrained row: layer decay is
    meant for pretrained layers, but in a short training it may help without them, which would look like a gain of
    pretraining.

    Each row chooses its rate, for each share of labels, by the top-1 accuracy on a fifth of the training images that
    the trials do not train on, with the first seed and fewer epochs. The validation images are not used for it.

    Returns:
        `rates`: row -> share -> rate -> accuracy of the trial; `runs`: row -> share -> one dict per seed with `top1`,
        `balanced`, `rate` and `seconds`, and with few labels `rest`, the metrics on the training images that the run
        did not train on (more images than for validation, so less noise); `probes`: row -> one dict per seed, names as
        `run_probes` has them, twice (`..._balanced`); `pretrain_seconds`.

    Raises:
        ValueError: The configs do not fit together, or `out` has results of other settings.
        RuntimeError: A run failed; the message names its log.
    """
    seeds, shares, rows = settings.seeds, settings.finetune, settings.rows
    pretrain = {(row, s): _pretraining(settings, row, s) for s in seeds for row in settings.pretrained}
    trials = {
        key: _task(settings, *key, seeds[0], trial=True) for key in itertools.product(rows, shares, settings.rates)
    }
    LabelledFolder(settings.data_root)  # checks the folder before anything runs
    seconds = stages.run_all('pretraining', Stages.train, pretrain)
    top1 = {key: trial['top1'] for key, trial in stages.run_all('learning rates', _finetune, trials).items()}
    rates = {
        row: {share: {rate: top1[row, share, rate] for rate in settings.rates} for share in shares} for row in rows
    }
    best = {(row, share): max(found, key=found.__getitem__) for row in rows for share, found in rates[row].items()}
    longest_first = sorted(best, key=lambda key: -key[1])
    tasks = {(*key, s): _task(settings, *key, best[key], s) for s in seeds for key in longest_first}
    tests = stages.run_all('fine-tuning', _finetune, tasks)
    probes = stages.run_all('probes', _probe, {(row, s): (settings, row, s) for row in settings.probed for s in seeds})

    def by_seed(row: str, share: float) -> list[dict[str, Any]]:
        return [dict(seed=s, rate=best[row, share], **tests[row, share, s]) for s in seeds]

    return dict(
        rates=rates,
        runs={row: {share: by_seed(row, share) for share in shares} for row in rows},
        probes={row: [dict(seed=s, **probes[row, s]) for s in seeds] for row in settings.probed},
        pretrain_seconds=list(seconds.values()),
    )


def _pretraining(settings: Settings, row: str, seed: int) -> tuple[Config, Path]:
    """Config and work dir of the pretraining of a row with one seed."""
    continued = row == CONTINUED
    cfg = settings.pretrain_config(
        settings.continued if continued else settings.pretrain, seed, lambda cfg: _fit_to(settings.init, cfg)
    )
    if continued and settings.init:
        cfg.load_from = settings.init.source
    return cfg, settings.out / ('continue' if continued else 'pretrain') / f'seed_{seed}'


def _fit_to(init: Start | None, cfg: Config) -> None:
    """Give the model of a config the architecture, mean and std of the weights; the size of the images stays."""
    if init is None:
        return
    settings = {name: value for name, value in init.settings.items() if name != 'img_size'}
    if type_name(cfg.model) != 'SimMIM':  # a classifier
        cfg.model.head.in_channels = init.arch['embed_dims']
        settings['use_rel_pos_bias'] = any([settings.pop(name) for name in TABLES])  # one per block
    cfg.model.backbone.update(arch=init.arch, **settings)
    cfg.model.data_preprocessor.update(init.preprocessor)
    mask, patch = cfg.get('mask') or {}, settings['patch_size']
    if mask.get('model_patch_size', patch) != patch:
        units = {'mask.mask_patch_size': 2 * patch} if 'mask_patch_size' in mask else {}
        apply_options(cfg, {'mask.model_patch_size': patch, **units})


def _task(
    settings: Settings, row: str, share: float, rate: float, seed: int, trial: bool = False
) -> tuple[Config, Path, bool]:
    """Arguments of `_finetune`."""
    name = f'{row.replace(", ", "_").replace(" ", "_")}_{100 * share:g}pct_lr{rate:g}'
    folder = settings.out / (f'trials/{name}' if trial else f'finetune/{name}_seed_{seed}')
    return _finetune_config(settings, row, share, rate, seed, trial), folder, share < 1 and not trial


def _finetune_config(settings: Settings, row: str, share: float, rate: float, seed: int, trial: bool = False) -> Config:
    """Config of one fine-tuning; a trial trains on four fifths of the training images and validates on the rest."""
    cfg = load_config(settings.finetune[share], {'data_root': settings.data_root})
    cfg.train_dataloader.dataset = innermost(cfg.train_dataloader.dataset)  # the few labels are chosen below, by seed
    _fit_to(settings.init, cfg)
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
    if row == TRANSFERRED and settings.init:
        cfg.load_from = settings.init.source
    if row in settings.pretrained:
        cfg.load_from = str(last_checkpoint(*_pretraining(settings, row, seed)))
    return cfg


def _few(dataset: Any, fraction: float, seed: int, **kwargs: Any) -> dict[str, Any]:
    return dict(type='simmim_plugin.FewLabels', fraction=fraction, seed=seed, **kwargs, dataset=dataset)


def _finetune(stages: Stages, cfg: Config, folder: Path, rest: bool = False) -> dict[str, Any]:
    seconds = stages.train(cfg, folder)
    found: dict[str, Any] = {name: last_scalar(folder, key) for name, key in METRICS.items()}
    if rest:
        found['rest'] = _evaluate_rest(stages, cfg, folder)
    return {**found, 'seconds': seconds}


def _evaluate_rest(stages: Stages, cfg: Config, folder: Path) -> dict[str, float]:
    """Metrics on the training images that FewLabels left out."""
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
        stages.test(path, last_checkpoint(cfg, folder), work_dir, folder / 'rest.log')
        (scores,) = work_dir.glob('*/*.json')
        write_json(done, {name: read_json(scores)[key] for name, key in METRICS.items()})
    return read_json(done)


def _probe(stages: Stages, settings: Settings, row: str, seed: int) -> dict[str, float]:
    """Probe every block; 'scratch' is the untrained model, to show what the architecture achieves alone.

    The weights of `init`, too, are probed as those of a model of this package.
    """
    path = settings.out / 'probes' / f'{row.replace(" ", "_")}_seed_{seed}.json'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg, folder = _pretraining(settings, row, seed)
        checkpoint = last_checkpoint(cfg, folder)
        if row not in settings.pretrained:
            torch.manual_seed(seed)
            note = dict(model=cfg.model.to_dict(), pipeline=[dict(t) for t in training_data(cfg).pipeline])
            checkpoint, model = path.with_suffix('.pth'), build_part(cfg.model)
            state = model.state_dict()
            if row == TRANSFERRED and settings.init:
                saved = read(settings.init.source, objects='known')
                content: dict[str, Any] = {'state_dict': saved.state, NOTE: saved.note}
                fit_checkpoint(model, content)
                state = content['state_dict']
            save_file({'state_dict': state, NOTE: note}, checkpoint)
        command = [str(TOOLS / 'probe.py'), str(checkpoint), settings.data_root, '--blocks', 'all', '--workers', '0']
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        stages.call([*command, '--device', device, '--out', str(path)], path.with_suffix('.log'))
    scores = read_json(path)
    return {f'{name}{end}': score[key] for name, score in scores.items() for key, end in PROBE_ENDS.items()}
