"""Compare pretraining configs: each is pretrained, fine-tuned and judged the same way, with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from simmim_plugin.config import apply_options, load_config, named_parts
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import LabelledFolder, run_probes
from simmim_plugin.experiments.report import mean_and_range
from simmim_plugin.experiments.runs import Stages, last_scalar
from simmim_plugin.utils.configs import training_data
from simmim_plugin.utils.files import read_json, write_json

SCRATCH = 'scratch'
METRICS = ('finetune', 'knn')


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share.

    Args:
        out: Folder of everything.
        data_root: Folder with train/ and val/, each with a folder per class.
        size: Config laid over the leaves; None leaves them as they are.
        finetune: Config of the fine-tuning.
        options: `--cfg-options` for the pretraining.
    """

    out: Path
    data_root: str
    size: str | None
    finetune: str
    options: Mapping[str, Any]


def at_size(cfg: Config, size: Config) -> Config:
    """Lay a config of another size over a leaf; lengths of crops and masks follow its `img_size` and `patch_size`.

    What a mask states in pixels is scaled with the patch, so that a unit stays as many patches wide. What the size
    states wins over the leaf.

    Args:
        cfg: The leaf; it is changed.
        size: Such as configs/ablations/_base_/small.py.
    """
    patch = cfg.model.backbone.patch_size
    cfg.merge_from_dict(size.to_dict())
    backbone = cfg.model.backbone
    scale = backbone.patch_size / patch
    pipeline = training_data(cfg).pipeline
    for transform in [*pipeline, *(cfg[name] for name in named_parts(cfg))]:
        kind = transform.type.split('.')[-1].split('/')[-1]
        if kind == 'RandomResizedCrop':
            transform.size = backbone.img_size
        elif kind == 'SimMIMMaskGenerator':
            transform.model_patch_size = backbone.patch_size
            if 'local' not in transform and 'global_' not in transform:
                transform.mask_patch_size = int(transform.get('mask_patch_size', 32) * scale)
            for part in ('local', 'global_'):
                if part in transform:
                    transform[part].unit = int(transform[part].unit * scale)
            if transform.get('adapt'):
                sides = np.multiply(transform.adapt.get('reference', 224), scale).astype(int)
                transform.adapt.reference = sides.tolist()
        elif kind == 'BEiTMaskGenerator':
            side = backbone.img_size // backbone.patch_size
            share = (side / transform.input_size) ** 2
            transform.input_size = side
            for name in ('num_masking_patches', 'min_num_patches'):
                transform[name] = round(transform[name] * share)
    cfg.train_pipeline = pipeline
    return cfg


def ablate(
    leaves: Sequence[str], seeds: Sequence[int], settings: Settings, stages: Stages, scratch: bool
) -> dict[str, list[dict]]:
    """Run what is not done yet, and collect the results.

    Args:
        leaves: Pretraining configs; a row of the table each, named after the file.
        seeds: Of pretraining and fine-tuning.
        settings: What they share.
        stages: How to run trainings.
        scratch: Also fine-tune without pretraining.

    Returns:
        Row -> results by seed: `finetune` and `knn`, top-1 in percent on val, and `seconds` of each stage.

    Raises:
        ValueError: Leaves of the same name, or results of other settings in `out`.
        RuntimeError: A run failed; the message names its log. The others' results are kept.
    """
    rows = {Path(leaf).stem: leaf for leaf in leaves}
    if len(rows) < len(leaves):
        raise ValueError(f'leaves must differ in their file names, got {", ".join(leaves)}')
    names = [*rows, *([SCRATCH] if scratch else [])]
    configs = {(name, seed): _configs(rows.get(name), seed, settings) for seed in seeds for name in names}
    with tqdm(total=len(configs), unit='run') as progress:
        tasks = {key: partial(_run, key, *found, settings, stages) for key, found in configs.items()}
        results = stages.run_all(tasks, progress)
    return {name: [{'seed': seed, **results[name, seed]} for seed in seeds] for name in names}


def _configs(leaf: str | None, seed: int, settings: Settings) -> tuple[Config | None, Config]:
    """Configs of pretraining (None: from scratch) and fine-tuning, checked before anything is run.

    Raises:
        ValueError: They are no such configs, or their backbones differ in size.
    """
    tuned = load_config(settings.finetune, {'data_root': settings.data_root})
    if 'head' not in tuned.get('model', {}) or 'val_dataloader' not in tuned:
        raise ValueError(f'--finetune {settings.finetune} is no config of fine-tuning with a head and a val_dataloader')
    tuned.randomness.seed = seed
    if leaf is None:
        return None, tuned
    cfg = load_config(leaf)
    dataset = training_data(cfg)
    if 'backbone' not in cfg.get('model', {}) or 'pipeline' not in dataset or 'max_epochs' not in cfg.train_cfg:
        raise ValueError(f'{leaf} is no pretraining config that counts epochs, such as configs/simmim_vit-b.py')
    if settings.size:
        cfg = at_size(cfg, Config.fromfile(settings.size))
    apply_options(cfg, settings.options)
    cfg.data_root = training_data(cfg).data_root = str(Path(settings.data_root) / 'train')
    cfg.randomness.seed = seed
    for key in ('arch', 'img_size', 'patch_size', 'in_channels'):
        ours, theirs = cfg.model.backbone.get(key), tuned.model.backbone.get(key)
        if ours != theirs:
            raise ValueError(
                f'{key} of the backbone is {ours} in {leaf} at this size and {theirs} in {settings.finetune}: the '
                'weights would not be loaded; give a --finetune config of the same size'
            )
    return cfg, tuned


def _run(
    task: tuple[str, int], pretrain: Config | None, tuned: Config, settings: Settings, stages: Stages
) -> dict[str, Any]:
    """One row with one seed: pretrain, k-NN, fine-tune; what is there already is not done again."""
    folder = settings.out / task[0] / f'seed_{task[1]}'
    done = read_json(folder / 'result.json')
    if pretrain is not None:
        done['pretrain_seconds'] = stages.train(pretrain, folder / 'pretrain')
        checkpoint = (folder / 'pretrain' / f'epoch_{pretrain.train_cfg.max_epochs}.pth').resolve()
        tuned.load_from = str(checkpoint)
        if 'knn' not in done:
            done['knn'] = _knn(checkpoint, settings.data_root)
            write_json(folder / 'result.json', done)
    done['finetune_seconds'] = stages.train(tuned, folder / 'finetune')
    done['finetune'] = last_scalar(folder / 'finetune', 'accuracy/top1')
    write_json(folder / 'result.json', done)
    return done


def _knn(checkpoint: Path, data_root: str) -> float:
    """k-NN accuracy on val of the frozen features of the last block."""
    extractor = FeatureExtractor(checkpoint, 'cuda' if torch.cuda.is_available() else 'cpu')
    return run_probes(extractor, LabelledFolder(data_root), linear=())['knn'].top1


def table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: a row per leaf; mean and range (lowest to highest) over the seeds of each metric, and minutes of a run.

    Args:
        results: From `ablate`.
    """
    lines = [
        '| leaf | seeds | fine-tuned top-1, % | k-NN top-1, % | pretraining, min | fine-tuning, min |',
        '|---|---|---|---|---|---|',
    ]
    for name, runs in results.items():
        cells = [mean_and_range([run[metric] for run in runs if metric in run]) for metric in METRICS]
        for key in ('pretrain_seconds', 'finetune_seconds'):
            values = [run[key] / 60 for run in runs if key in run]
            cells.append(f'{sum(values) / len(values):.1f}' if values else '')
        lines.append(f'| {name} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def plot(results: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Draw every run as a point and each leaf's mean as a line, one panel per metric.

    Args:
        results: From `ablate`.
        out: The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 4 * len(METRICS), 1.2 + 0.45 * len(results)), layout='constrained')
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for panel, metric, label in zip(panels, METRICS, ('fine-tuned top-1, %', 'k-NN top-1, %')):
        for i, runs in enumerate(results.values()):
            values = [run[metric] for run in runs if metric in run]
            panel.plot(values, [i] * len(values), 'o', color='tab:blue', alpha=0.6)
            if values:
                panel.plot([sum(values) / len(values)] * 2, [i - 0.25, i + 0.25], color='black')
        panel.set_xlabel(label)
        panel.grid(axis='x', alpha=0.3)
    panels[0].set_yticks(range(len(results)), list(results))
    panels[0].invert_yaxis()
    figure.savefig(out, dpi=120)
