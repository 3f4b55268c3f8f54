"""Configs that the commands write: nothing in a checkpoint or a path becomes a program or another path."""

import pytest
import torch
from mmengine.config import Config

from helpers.checkpoints import write_checkpoint
from helpers.labelled import make_labelled
from helpers.models import TINY
from simmim_plugin import cli
from simmim_plugin.experiments.runs import Stages

# Names of folders that MMEngine would replace, in the text of a config, by other words.
NAMES = [
    '{{fileBasename}}',
    '{{ fileDirname }}',
    '{{$NOT_SET:default}}',
    '{{{fileExtname}}}',
    '{{ _base_.epochs }}',
    '\\{{',
]
QUOTES = '"""\nimport os  # \'\'\' {{fileBasename}}'


@pytest.fixture
def labelled(tmp_path):
    make_labelled(tmp_path / 'data', dict(a=9, b=7), dict(a=5, b=4), side=64)
    return tmp_path / 'data'


def finetune(data, checkpoint, out):
    words = ['--checkpoint', str(checkpoint), '--out', str(out), '--dry-run', '--batch-size', '2']
    cli.main(['finetune', str(data), *words])
    return Config.fromfile(out / 'config.py')


@pytest.mark.parametrize('name', [*NAMES, QUOTES])
def test_paths_stay_as_they_are(name, labelled, tmp_path):
    data = labelled.rename(tmp_path / name.replace('/', '_'))
    (tmp_path / 'runs' / data.name).mkdir(parents=True)
    checkpoint = write_checkpoint(tmp_path / 'runs' / data.name / 'a.pth')
    cfg = finetune(data, checkpoint, tmp_path / 'out' / data.name)
    assert cfg.data_root == str(data) and cfg.load_from == str(checkpoint)
    out = tmp_path / 'pretrained' / data.name
    cli.main(['pretrain', str(data), '--arch', 'tiny', '--out', str(out), '--dry-run', '--batch-size', '2'])
    assert Config.fromfile(out / 'config.py').data_root == str(data)


@pytest.mark.parametrize('name', NAMES)
def test_paths_of_comparisons_stay_as_they_are(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Stages, 'call', lambda self, command, log: None)
    Stages().train(Config(dict(data_root=f'/data/{name}')), tmp_path / 'run')
    assert Config.fromfile(tmp_path / 'run.py').data_root == f'/data/{name}'


@pytest.mark.parametrize('substituted', [False, True])
@pytest.mark.parametrize(
    'key',
    [
        *(('arch', name) for name in ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')),
        *((name,) for name in ('arch', 'img_size', 'patch_size', 'in_channels', 'layer_scale_init_value')),
        *((name,) for name in ('use_abs_pos_embed', 'use_shared_rel_pos_bias', 'use_rel_pos_bias')),
    ],
)
def test_values_of_a_checkpoint_are_checked(key, substituted, labelled, tmp_path):
    program = f"open({str(tmp_path / 'run')!r},'w')"
    program = "{{$NOT_SET:'+str(" + program + ")+'}}" if substituted else program
    path = write_checkpoint(tmp_path / 'evil.pth')
    content = torch.load(path)
    backbone = content['simmim_plugin']['model']['backbone'] = {**TINY, 'arch': dict(TINY['arch'])}
    if key == ('use_rel_pos_bias',):
        backbone['use_shared_rel_pos_bias'] = False
    (backbone['arch'] if len(key) == 2 else backbone)[key[-1]] = program
    torch.save(content, path)
    with pytest.raises(SystemExit, match=f"error: checkpoint '{path}': .*{'.'.join(key)}="):
        finetune(labelled, path, tmp_path / 'out')
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'out').exists()
