"""Compare pretraining configs: each is pretrained, fine-tuned and judged the same way, with several seeds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from tqdm import tqdm

from simmim_plugin.checkpoint import load_pretrained
from simmim_plugin.curves import read_scalars
from simmim_plugin.knn import knn_accuracy, pooled_features
from simmim_plugin.launch import apply_options, load_config, training_data

TRAIN = Path(__file__).resolve().parents[1] / 'tools' / 'train.py'
SCRATCH = 'scratch'
METRICS = ('finetune', 'knn')
KNN_BATCH = 256


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share.

    Args:
        out: Folder of everything.
        data_root: Folder with train/ and val/, each with a folder per class.
        size: Config laid over the leaves; None leaves them as they are.
        finetune: Config of the fine-tuning.
        options: `--cfg-options` for the pretraining.
        amp: bfloat16 autocast.
        jobs: Runs at a time.
    """

    out: Path
    data_root: str
    size: str | None
    finetune: str
    options: Mapping[str, Any]
    amp: bool = False
    jobs: int = 1


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
    for transform in pipeline:
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


def ablate(leaves: Sequence[str], seeds: Sequence[int], settings: Settings, scratch: bool) -> dict[str, list[dict]]:
    """Run what is not done yet, and collect the results.

    Args:
        leaves: Pretraining configs; a row of the table each, named after the file.
        seeds: Of pretraining and fine-tuning.
        settings: What they share.
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
    classes = [_class_folders(settings.data_root, split) for split in ('train', 'val')]
    if not classes[0] or classes[0] != classes[1]:
        raise ValueError(
            f'--data-root {settings.data_root}: needs the folders train and val, with the same folders of classes in '
            f'both; found {classes[0]} and {classes[1]}'
        )
    names = [*rows, *([SCRATCH] if scratch else [])]
    tasks = {(name, seed): _configs(rows.get(name), seed, settings) for seed in seeds for name in names}
    stages = sum(1 if pretrain is None else 2 for pretrain, _ in tasks.values())
    results: dict[tuple[str, int], dict] = {}
    processes: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(settings.jobs) as pool, tqdm(total=stages, unit='stage') as progress:
        futures = {pool.submit(_run, task, *tasks[task], settings, processes, progress): task for task in tasks}
        try:
            for future in as_completed(futures):
                name, seed = futures[future]
                results[name, seed] = future.result()
                progress.write(f'{name}, seed {seed}: fine-tuned {results[name, seed]["finetune"]:.1f} %')
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(processes):
                process.terminate()
            raise
    return {name: [{'seed': seed, **results[name, seed]} for seed in seeds] for name in names}


def _class_folders(data_root: str, split: str) -> list[str]:
    folder = Path(data_root) / split
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _configs(leaf: str | None, seed: int, settings: Settings) -> tuple[Config | None, Config]:
    """Configs of pretraining (None: from scratch) and fine-tuning, checked before anything is run.

    Raises:
        ValueError: They are no such configs, or their backbones differ in size.
    """
    tuned = Config.fromfile(settings.finetune)
    if 'head' not in tuned.get('model', {}) or 'val_dataloader' not in tuned:
        raise ValueError(f'--finetune {settings.finetune} is no config of fine-tuning with a head and a val_dataloader')
    tuned.model.head.num_classes = len(_class_folders(settings.data_root, 'train'))
    for loader in (tuned.train_dataloader, tuned.val_dataloader):
        loader.dataset.data_root = settings.data_root
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
    task: tuple[str, int],
    pretrain: Config | None,
    tuned: Config,
    settings: Settings,
    processes: set[subprocess.Popen],
    progress: tqdm,
) -> dict[str, Any]:
    """One row with one seed: pretrain, k-NN, fine-tune; what is there already is not done again."""
    folder = settings.out / task[0] / f'seed_{task[1]}'
    folder.mkdir(parents=True, exist_ok=True)
    done = _read(folder / 'result.json')
    if pretrain is not None:
        _stage(pretrain, folder / 'pretrain', 'pretrain_seconds', done, settings, processes)
        _write(folder / 'result.json', done)
        progress.update()
        checkpoint = str(folder / 'pretrain' / f'epoch_{pretrain.train_cfg.max_epochs}.pth')
        tuned.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
        if 'knn' not in done:
            done['knn'] = _knn(checkpoint, tuned)
            _write(folder / 'result.json', done)
    _stage(tuned, folder / 'finetune', 'finetune_seconds', done, settings, processes)
    done['finetune'] = _last_accuracy(folder / 'finetune')
    _write(folder / 'result.json', done)
    progress.update()
    return done


def _stage(
    cfg: Config,
    folder: Path,
    key: str,
    done: dict[str, Any],
    settings: Settings,
    processes: set[subprocess.Popen],
) -> None:
    """Train in a process of its own, going on from the last checkpoint; adds the last call's seconds to `done`."""
    path = folder.with_name(f'{folder.name}.py')
    text = f'# {"bfloat16 autocast (--amp)" if settings.amp else "float32"}\n{cfg.pretty_text}'
    if path.is_file() and path.read_text(encoding='utf-8') != text:
        raise ValueError(f'{path} holds other settings than asked for now; choose another --out, or remove that folder')
    if key in done:
        return
    path.write_text(text, encoding='utf-8')
    threads = max(1, (os.cpu_count() or 1) // settings.jobs)
    command = [sys.executable, str(TRAIN), str(path), '--work-dir', str(folder), '--resume', *['--amp'] * settings.amp]
    log = path.with_suffix('.log')
    start = time.monotonic()
    with log.open('a', encoding='utf-8') as output:
        environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        processes.add(process)
        code = process.wait()
        processes.discard(process)
    if code:
        lines = [line for line in log.read_text(encoding='utf-8').splitlines() if line.startswith('error: ')]
        raise RuntimeError(f'{path} failed: {lines[-1][7:] if lines else "killed"} (its output: {log})')
    done[key] = round(time.monotonic() - start, 1)


def _knn(checkpoint: str, finetune: Config) -> float:
    """k-NN accuracy on val of the frozen features, images cropped as for the fine-tuned model's evaluation."""
    model, _ = load_pretrained(checkpoint, 'cuda' if torch.cuda.is_available() else 'cpu')
    features, labels = [], []
    for prefix in ('train', 'val'):
        dataset = DATASETS.build(
            {'_scope_': 'mmpretrain', **finetune.val_dataloader.dataset.to_dict(), 'data_prefix': prefix}
        )
        batches = (
            torch.stack([dataset[i]['inputs'] for i in range(start, min(start + KNN_BATCH, len(dataset)))])
            for start in range(0, len(dataset), KNN_BATCH)
        )
        features.append(pooled_features(model, batches))
        labels.append(np.array([dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]))
    return knn_accuracy(features[0], labels[0], features[1], labels[1])


def _last_accuracy(folder: Path) -> float:
    values = [line['accuracy/top1'] for line in read_scalars(folder) if 'accuracy/top1' in line]
    if not values:
        raise RuntimeError(f'{folder} has no accuracy in its logs; remove the folder to run it again')
    return float(values[-1])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.with_suffix('.tmp').write_text(json.dumps(content, indent=1), encoding='utf-8')
    path.with_suffix('.tmp').replace(path)


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
        cells = [_mean_and_range([run[metric] for run in runs if metric in run]) for metric in METRICS]
        for key in ('pretrain_seconds', 'finetune_seconds'):
            values = [run[key] / 60 for run in runs if key in run]
            cells.append(f'{sum(values) / len(values):.1f}' if values else '')
        lines.append(f'| {name} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _mean_and_range(values: Sequence[float]) -> str:
    return f'{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})' if values else ''


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
