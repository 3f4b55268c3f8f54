"""The comparison with training from scratch: configs of its runs, tables, and a complete tiny comparison."""

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from safetensors.torch import save_file

from helpers.checkpoints import MEAN, pretrained
from helpers.commands import run
from helpers.hubs import empty_cache, snapshot
from helpers.labelled import make_labelled
from helpers.other_projects import randomise
from helpers.paths import ROOT
from simmim_plugin.checkpoints.start import read_start
from simmim_plugin.experiments import transfer, transfer_tables
from simmim_plugin.experiments.runs import Stages
from simmim_plugin.experiments.transfer import Settings

CONTINUE = ROOT / 'configs/simmim_vit-tiny_continue.py'
PRETRAIN, FINETUNE = ROOT / 'configs/simmim_vit-tiny_folder.py', ROOT / 'configs/finetune/vit-tiny_folder.py'


@pytest.fixture
def data(tmp_path) -> Path:
    make_labelled(tmp_path / 'data', dict(a=20, b=12), dict(a=4, b=3), side=72)
    return tmp_path / 'data'


def settings(data: Path, out: Path) -> Settings:
    few = out.with_name('few.py')
    few.write_text(
        f'_base_ = {str(FINETUNE)!r}\n'
        "few = dict(_delete_=True, type='simmim_plugin.FewLabels', fraction=0.25)\n"
        'train_dataloader = dict(dataset=dict(dataset=_base_.train_dataloader.dataset, **few))\n'
        'train_cfg = dict(max_epochs=30)\n'
    )
    configs = transfer.label_shares([str(FINETUNE), str(few)], str(data))
    return Settings(out, str(data), data / 'train', [0, 1], {}, str(PRETRAIN), configs, rates=[1e-3])


def images(loader) -> set[str]:
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(loader.dataset)
    dataset.full_init()
    return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}


def test_trials_are_evaluated_on_images_that_none_trains_on(data, tmp_path):
    given = settings(data, tmp_path / 'out')
    held_out = set()
    for share, count in ((1.0, 16 + 10), (0.25, 4 + 3)):  # 0.8 of 20 and 12, and a quarter of these, rounded up
        cfg = transfer._finetune_config(given, 'scratch', share, 1e-3, 0, trial=True)
        train, evaluated = images(cfg.train_dataloader), images(cfg.val_dataloader)
        assert len(train) == count and len(evaluated) == 4 + 2 and not train & evaluated
        assert all('/train/' in path for path in train | evaluated)
        held_out |= evaluated
        final = transfer._finetune_config(given, 'scratch', share, 1e-3, 0)
        assert len(images(final.train_dataloader)) == (32 if share == 1 else 5 + 3)
        assert all('/val/' in path for path in images(final.val_dataloader)) and len(images(final.val_dataloader)) == 7
    assert len(held_out) == 6  # the same ones for both shares


def test_rows_differ_only_in_start_and_layer_decay(data, tmp_path):
    given = settings(data, tmp_path / 'out')
    scratch = transfer._finetune_config(given, 'scratch', 1.0, 3e-3, 1)
    tuned = transfer._finetune_config(given, 'pretrained', 1.0, 3e-3, 1)
    assert scratch.load_from is None and scratch.optim_wrapper.paramwise_cfg is None
    assert tuned.load_from == str(tmp_path / 'out/pretrain/seed_1/epoch_60.pth')
    assert tuned.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.75
    tuned.load_from = scratch.optim_wrapper.paramwise_cfg = None
    tuned.optim_wrapper.paramwise_cfg = None
    assert scratch.to_dict() == tuned.to_dict()
    decayed = transfer._finetune_config(given, 'scratch, layer decay', 1.0, 3e-3, 1)
    assert decayed.load_from is None and decayed.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.75
    assert scratch.optim_wrapper.optimizer.lr == 3e-3 and scratch.randomness.seed == 1
    few = transfer._finetune_config(given, 'scratch', 0.25, 3e-3, 1)
    assert (few.param_scheduler[0].warmup, few.param_scheduler[0].end, few.train_cfg.max_epochs) == (6, 30, 30)
    assert scratch.model.head.num_classes == 2 and 'train' in transfer._pretraining(given, 'pretrained', 0)[0].data_root


def test_shares_of_labels_are_those_of_the_configs(data):
    few = str(FINETUNE).replace('_folder', '_folder_10pct')
    assert transfer.label_shares([str(FINETUNE), few], str(data)) == {1.0: str(FINETUNE), 0.1: few}
    with pytest.raises(ValueError, match='have the same share of labels'):
        transfer.label_shares([few, few], str(data))


@pytest.mark.parametrize(
    ('base', 'changes', 'message'),
    [
        (PRETRAIN, '', 'is no config of fine-tuning'),
        (FINETUNE, "data = dict(type='RepeatDataset', times=2)", 'may be reduced by a FewLabels, not by RepeatDataset'),
        (FINETUNE, "data = dict(type='FewLabels', fraction=0.5, rest=True)", 'may be reduced by a FewLabels, not by'),
        (
            FINETUNE,
            "data = dict(type='FewLabels', fraction=10)",
            r'fraction=10 must be a number in \(0, 1\]',
        ),
        (FINETUNE, "param_scheduler = [dict(type='CosineAnnealingLR')]", 'must be a WarmupCosineLR, in a list'),
        (FINETUNE, 'param_scheduler = None', 'must be a WarmupCosineLR, in a list'),
    ],
)
def test_unsuitable_configs_are_named(data, tmp_path, base, changes, message):
    leaf = tmp_path / 'leaf.py'
    text = f'_base_ = {str(base)!r}\n{changes}\n'
    if changes.startswith('data'):
        text += 'data.update(_delete_=True, dataset=_base_.train_dataloader.dataset)\n'
        text += 'train_dataloader = dict(dataset=data)\n'
    leaf.write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        transfer.label_shares([str(leaf)], str(data))
    assert str(found.value).startswith(f'--finetune {leaf}')


def test_the_given_data_root_overrides_that_of_a_leaf(data, tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = {str(FINETUNE)!r}\ndata_root = '/nowhere'\n")
    configs = transfer.label_shares([str(leaf)], str(data))
    given = Settings(tmp_path / 'out', str(data), data / 'train', [0], {}, str(PRETRAIN), configs, rates=[1e-3])
    cfg = transfer._finetune_config(given, 'scratch', 1.0, 1e-3, 0)
    assert cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == str(data)
    assert cfg.model.head.num_classes == 2


def test_rows_with_weights_that_exist(data, tmp_path):
    """All have the architecture of the weights, and differ in the start alone; scratch has no layer decay."""
    weights = tmp_path / 'weights.pth'
    pretrained(weights, use_shared_rel_pos_bias=False, use_abs_pos_embed=True)  # 48 wide, patches of 16 px
    base = settings(data, tmp_path / 'out')
    init, continued = read_start(str(weights)), str(CONTINUE)
    given = dataclasses.replace(base, init=init, continued=continued)
    alone, cfg = (transfer._pretraining(given, row, 1)[0] for row in given.pretrained)
    assert (alone.load_from, cfg.load_from) == (None, str(weights)) and cfg.randomness.seed == 1
    assert alone.model == cfg.model and alone.model.backbone.arch.embed_dims == 48
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.8 and 'paramwise_cfg' not in alone.optim_wrapper
    masks = cfg.train_dataloader.dataset.pipeline[3]
    assert (masks.mask_patch_size, masks.model_patch_size, cfg.data_root) == (32, 16, str(data / 'train'))
    assert cfg.model.data_preprocessor.mean == MEAN
    starts, shared = {}, []
    for row in given.rows:
        tuned = transfer._finetune_config(given, row, 1.0, 1e-3, 1)
        starts[row] = tuned.load_from
        assert (tuned.model.backbone.img_size, tuned.model.backbone.patch_size, tuned.model.head.in_channels) == (
            64, 16, 48,
        )  # fmt: skip
        assert tuned.model.backbone.use_abs_pos_embed and not tuned.model.backbone.use_rel_pos_bias
        tuned.load_from = tuned.optim_wrapper.paramwise_cfg = None
        shared.append(tuned.to_dict())
    assert all(cfg == shared[0] for cfg in shared)
    assert starts == {
        'scratch': None,
        'SimMIM on the target alone': str(tmp_path / 'out/pretrain/seed_1/epoch_60.pth'),
        'transferred': str(weights),
        'transferred and continued': str(tmp_path / 'out/continue/seed_1/epoch_30.pth'),
    }


def test_gains_with_weights_that_exist():
    runs = {
        row: {1.0: [dict(seed=0, rate=0.002, top1=top, balanced=top, seconds=90.0)]}
        for row, top in zip(transfer_tables.WITH_INIT, (40.0, 44.0, 50.0, 53.0))
    }
    text = transfer_tables.table(results() | dict(runs=runs, probes=dict(scratch=[dict(seed=0)])))
    for row, gain in (
        ('SimMIM on the target alone minus scratch', 4),
        ('transferred minus scratch', 10),
        ('transferred and continued minus scratch', 13),
        ('transferred and continued minus transferred', 3),
    ):
        assert f'| {row}, by seed | 100 % |  | +{gain}.0 (+{gain}.0 to +{gain}.0) |' in text


def results() -> dict:
    runs = {
        row: {
            share: [dict(seed=s, rate=0.002, top1=top + s, balanced=top - 10 + s, seconds=90.0) for s in (0, 1, 2)]
            for share, top in shares.items()
        }
        for row, shares in (('scratch', {1.0: 40.0, 0.1: 20.0}), ('pretrained', {1.0: 50.0, 0.1: 30.0}))
    }
    probe = {'block2_pooled_knn': 31.0, 'block2_pooled_knn_balanced': 21.0}
    trials = {1.0: {1e-3: 30.0, 2e-3: 40.0, 4e-3: 35.0}, 0.1: {1e-3: 20.0, 2e-3: 18.0, 4e-3: 15.0}}
    return dict(
        runs=runs,
        rates={'scratch': trials},
        probes={row: [dict(seed=0, **probe)] for row in runs},
        pretrain_seconds=[1.0],
    )


def test_table_and_plot_by_hand(tmp_path):
    text = transfer_tables.table(results())
    assert '| scratch | 100 % | 0.002 | 41.0 (40.0 to 42.0) | 31.0 (30.0 to 32.0) | 1.5 |' in text
    assert '| pretrained | 10 % | 0.002 | 31.0 (30.0 to 32.0) | 21.0 (20.0 to 22.0) | 1.5 |' in text
    assert (
        '| pretrained minus scratch, by seed | 10 % |  | +10.0 (+10.0 to +10.0) | +10.0 (+10.0 to +10.0) |  |' in text
    )
    few = results()
    for row, top in (('scratch', 20.0), ('pretrained', 24.0)):
        for run_ in few['runs'][row][0.1]:
            run_['rest'] = dict(top1=top, balanced=top - run_['seed'])
    text_of_few = transfer_tables.table(few)
    rest = '10 %, evaluated on the other training images'
    assert f'| pretrained | {rest} | 0.002 | 24.0 (24.0 to 24.0) | 23.0 (22.0 to 24.0) | 1.5 |' in text_of_few
    assert (
        f'| pretrained minus scratch, by seed | {rest} |  | +4.0 (+4.0 to +4.0) | +4.0 (+4.0 to +4.0) |' in text_of_few
    )
    assert '| block2, knn | 31.0 (31.0 to 31.0) | 21.0 (21.0 to 21.0) | 31.0 (31.0 to 31.0)' in text
    assert '| trials, top-1 in % | labels | 0.001 | 0.002 | 0.004 |' in text
    assert '| scratch | 10 % | 20.0 | 18.0 | 15.0 |' in text
    assert 'At an end of the rates tried: scratch with 10 %. Add rates there.' in text
    assert transfer_tables.table(json.loads(json.dumps(results()))) == text  # as read from results.json
    transfer_tables.plot(results(), tmp_path / 'plot.png')
    assert Image.open(tmp_path / 'plot.png').size[0] > 500


def test_blocks_are_in_the_order_of_their_numbers():
    names = [f'block{b}_pooled_{kind}' for b in (1, 2, 10) for kind in ('linear', 'knn')]
    probe = {f'{name}{end}': 50.0 for name in names for end in ('', '_balanced')}
    text = transfer_tables.table(results() | dict(probes={'pretrained': [dict(seed=0, **probe)]}))
    rows = re.findall(r'^\| (block\S+ \w+) ', text, re.MULTILINE)
    assert rows == [f'block{b}, {kind}' for kind in ('knn', 'linear') for b in (1, 2, 10)]


@pytest.mark.slow
def test_a_complete_comparison_and_resuming(data, tmp_path):
    for name, base, more in (
        ('pretrain', PRETRAIN, "model['head'] = dict()\ntrain_cfg = dict(max_epochs=1)\n"),
        ('finetune', FINETUNE, 'head = dict(in_channels=16)\nmodel["head"] = head\n'),
    ):
        arch = 'dict(_delete_=True, embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)'
        text = f"_base_ = '{base}'\nmodel = dict(backbone=dict(arch={arch}))\n{more}"
        for split in ('train', 'val')[: 1 + (name == 'finetune')]:
            text += f'{split}_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)\n'
        (tmp_path / f'{name}.py').write_text(text)
    command = [sys.executable, ROOT / 'tools/transfer.py', '--data-root', data, '--out', tmp_path / 'out', '--jobs', 2]
    for name, share, epochs in (('all', 1, 2), ('few', 0.25, 3), ('longer', 1, 4)):
        text = f"_base_ = 'finetune.py'\ntrain_cfg = dict(max_epochs={epochs})\n"
        if share < 1:
            few = f"_delete_=True, type='simmim_plugin.FewLabels', fraction={share}"
            text += f'train_dataloader = dict(dataset=dict(dataset=_base_.train_dataloader.dataset, {few}))\n'
        (tmp_path / f'{name}.py').write_text(text)
    command += ['--pretrain', tmp_path / 'pretrain.py', '--seeds', 0, '--rates', 1e-3, '--finetune']
    more, command = command, [*command, tmp_path / 'all.py', tmp_path / 'few.py']
    output = run(*command)
    assert re.search(r'\| pretrained \| 25 % \| 0.001 \| \d', output) and 'block2, linear' in output
    assert output.count('| 25 %, evaluated on the other training images |') == 4
    for row in ('pretrained', 'scratch', 'scratch_layer_decay'):
        (folder,) = (tmp_path / 'out/finetune').glob(f'{row}_25pct_*_seed_0')
        rest, log = Config.fromfile(folder / 'rest.py'), (folder / 'rest.log').read_text()
        few = Config.fromfile(folder.with_name(f'{folder.name}.py')).train_dataloader
        assert len(images(rest.test_dataloader)) == 32 - 8 and 'Epoch(test) [6/6]' in re.sub(r'\[ *', '[', log)
        assert not images(rest.test_dataloader) & images(few)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.pth')}
    # A pretraining, a model without training for its probe, and for each of 3 rows and 2 shares a trial and a run.
    assert len(written) == 2 + 3 * 2 * 2
    for stage in ('trials', 'finetune'):
        for row, loaded in (('pretrained', True), ('scratch_[0-9]', False), ('scratch_layer_decay', False)):
            logs = list((tmp_path / 'out' / stage).glob(f'{row}*.log'))
            assert len(logs) == 2 and all(
                ('Loaded 36 tensors of load_from' in log.read_text()) == loaded for log in logs
            )
    table = (tmp_path / 'out/table.md').read_text()
    run(*command)
    assert (tmp_path / 'out/table.md').read_text() == table
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.pth')}
    assert 'has other settings than the current ones' in run(*more, tmp_path / 'longer.py', ok=False)
    assert 'have the same share of labels' in run(*command, tmp_path / 'longer.py', ok=False)
    assert '--rates=[0.001, 0.001] must differ' in run(*command, '--rates', 1e-3, 1e-3, ok=False)
    assert '--rates=nan must be a number above 0' in run(*command, '--rates', 'nan', ok=False)
    assert '--jobs=0 must be a whole number of at least 1' in run(*command, '--jobs', 0, ok=False)


@pytest.mark.slow
def test_a_complete_comparison_with_weights_that_exist(data, tmp_path, monkeypatch):
    """Of a ViT of timm: its name gives the architecture of all rows; four rows, their gains, and nothing run twice."""
    small: Any = functools.partial(timm.create_model, 'test_vit', embed_dim=32, depth=2, num_heads=2, img_size=64)
    name, cache = 'test_vit.r160_in1k', empty_cache(tmp_path / 'cache', monkeypatch)
    save_file(randomise(small()).state_dict(), snapshot(cache, f'timm/{name}') / 'model.safetensors')
    monkeypatch.setattr(timm, 'create_model', lambda name, **kwargs: small(**kwargs))
    calls = []

    def call(self, command, log):  # forked processes, which start sooner and have the cache
        calls.append(command)
        log.write_text(run(sys.executable, *command))

    def run_all(self, name, function, tasks):  # without threads, from which one cannot fork, and without trials
        if name == 'learning rates':
            return {key: dict(top1=0.0) for key in tasks}
        return {key: function(self, *arguments) for key, arguments in tasks.items()}

    monkeypatch.setattr(Stages, 'call', call)
    monkeypatch.setattr(Stages, 'run_all', run_all)
    for leaf, base in (('pretrain', PRETRAIN), ('continue', CONTINUE), ('finetune', FINETUNE)):
        text = f"_base_ = '{base}'\ntrain_cfg = dict(max_epochs=1)\n"
        for split in ('train', 'val')[: 1 + (leaf == 'finetune')]:
            text += f'{split}_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)\n'
        (tmp_path / f'{leaf}.py').write_text(text)
    configs = transfer.label_shares([str(tmp_path / 'finetune.py')], str(data))
    given = Settings(
        tmp_path / 'out', str(data), data / 'train', [0], {}, str(tmp_path / 'pretrain.py'), configs, rates=[1e-3],
        init=read_start(f'timm:{name}'), continued=str(tmp_path / 'continue.py'),
    )  # fmt: skip
    results = transfer.compare(given, Stages())
    assert len(calls) == 2 + 4 + 4  # pretrainings, runs of four rows, probes
    assert list(results['runs']) == list(results['probes']) == list(transfer_tables.WITH_INIT)
    text = transfer_tables.table(results)
    assert '| transferred and continued minus transferred, by seed | 100 % |' in text
    for log in (tmp_path / 'out').glob('*/*.log'):
        loaded = log.parent.name == 'continue' or (log.parent.name == 'finetune' and not log.name.startswith('scratch'))
        assert ('tensors of load_from' in log.read_text()) == loaded, log
    assert transfer.compare(given, Stages()) == results and len(calls) == 10
