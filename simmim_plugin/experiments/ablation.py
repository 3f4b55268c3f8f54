"""Compare pretraining configs: pretrain, fine-tune and evaluate each with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from simmim_plugin.config import named_parts
from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import LabelledFolder, run_probes
from simmim_plugin.experiments import report, runs
from simmim_plugin.experiments.runs import Stages, last_scalar
from simmim_plugin.utils.configs import training_data
from simmim_plugin.utils.files import read_json, write_json

SCRATCH = 'scratch'
METRICS = {'finetune': 'fine-tuned top-1, %', 'knn': 'k-NN top-1, %'}
SECONDS = {'pretrain_seconds': 'pretraining, min', 'finetune_seconds': 'fine-tuning, min'}


@dataclass(frozen=True)
class Settings(runs.Settings):
    """A comparison of pretraining configs, on data with train/ and val/, each with a folder per class.

    Args:
        leaves: Pretraining configs; each is a row of the table, named after its file.
        size: Config merged into the leaves; None keeps them unchanged.
        finetune: Fine-tuning config.
        scratch: Also fine-tune without pretraining.
    """

    leaves: Sequence[str]
    size: str | None
    finetune: str
    scratch: bool


def at_size(cfg: Config, size: Config) -> Config:
    """Merge a config of another size into a leaf, and adapt crops and masks to its `img_size` and `patch_size`.

    Lengths of masks in pixels are scaled with the patch, so that a unit keeps its width in patches. Values of `size`
    override those of the leaf.

    Args:
        cfg: The leaf; changed in place.
        size: For example configs/ablations/_base_/small.py.
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


def compare(settings: Settings, stages: Stages) -> dict[str, list[dict[str, Any]]]:
    """Run everything that is not done yet, and collect the results.

    Returns:
        Row -> results by seed: `finetune` and `knn`, top-1 in percent on val, and `..._seconds` of each stage.

    Raises:
        ValueError: Two leaves have the same name, or `out` has results of other settings.
        RuntimeError: A run failed; the message names its log. The results of other runs are kept.
    """
    rows: dict[str, str | None] = {**runs.by_name(settings.leaves), **({SCRATCH: None} if settings.scratch else {})}
    tasks = {
        (name, seed): (*_configs(leaf, seed, settings), settings.out / name / f'seed_{seed}')
        for seed in settings.seeds
        for name, leaf in rows.items()
    }
    found = stages.run_all('ablation', _run, tasks)
    return {name: [{'seed': seed, **found[name, seed]} for seed in settings.seeds] for name in rows}


def _configs(leaf: str | None, seed: int, settings: Settings) -> tuple[Config | None, Config]:
    """Configs of pretraining (None: from scratch) and fine-tuning, checked before anything runs.

    Raises:
        ValueError: They are of another kind, or their backbones differ in size.
    """
    tuned = runs.finetune_config(settings.finetune, settings.data_root)
    tuned.randomness.seed = seed
    if leaf is None:
        return None, tuned
    resize = partial(at_size, size=Config.fromfile(settings.size)) if settings.size else None
    cfg = settings.pretrain_config(leaf, seed, resize)
    for key in ('arch', 'img_size', 'patch_size', 'in_channels'):
        ours, theirs = cfg.model.backbone.get(key), tuned.model.backbone.get(key)
        if ours != theirs:
            raise ValueError(
                f'{key} of the backbone is {ours} in {leaf} at this size and {theirs} in {settings.finetune}: the '
                'weights would not be loaded; give a --finetune config of the same size'
            )
    return cfg, tuned


def _run(stages: Stages, pretrain: Config | None, tuned: Config, folder: Path) -> dict[str, Any]:
    """Run one row with one seed (pretrain, k-NN, fine-tune), except for what is done."""
    done = read_json(folder / 'result.json')
    if pretrain is not None:
        done['pretrain_seconds'] = stages.train(pretrain, folder / 'pretrain')
        checkpoint = runs.last_checkpoint(pretrain, folder / 'pretrain')
        tuned.load_from = str(checkpoint)
        if 'knn' not in done:
            done['knn'] = _knn(checkpoint, tuned.data_root)
            write_json(folder / 'result.json', done)
    done['finetune_seconds'] = stages.train(tuned, folder / 'finetune')
    done['finetune'] = last_scalar(folder / 'finetune', 'accuracy/top1')
    write_json(folder / 'result.json', done)
    return done


def _knn(checkpoint: Path, data_root: str) -> float:
    """k-NN accuracy on val, in percent, of the frozen features of the last block."""
    extractor = FeatureExtractor(checkpoint, 'cuda' if torch.cuda.is_available() else 'cpu')
    return run_probes(extractor, LabelledFolder(data_root), linear=())['knn'].top1


def table(results: Mapping[str, report.Runs]) -> str:
    """Markdown table of the results of `compare`."""
    rows = [report.Row((name, str(len(found))), found) for name, found in results.items()]
    return report.table(('leaf', 'seeds'), rows, METRICS, SECONDS)


def plot(results: Mapping[str, report.Runs], out: Path) -> None:
    """Plot the results of `compare`, see `report.plot`."""
    report.plot(results, METRICS, (12, 1.2 + 0.45 * len(results)), out)
