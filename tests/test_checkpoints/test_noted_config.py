"""The config in a checkpoint names programs; every tool refuses it, and nothing is run."""

import json
import re

import pytest
import safetensors.torch
import torch

from helpers.checkpoints import write_checkpoint
from helpers.models import TINY
from simmim_plugin import cli, load_pretrained
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.saved import read

# Words of a command line; {evil}: the checkpoint, {image}, {folder}: good files, {out}: a new one.
COMMANDS = {
    'reconstruct': ('reconstruct', '{evil}', '{image}', '--out', '{out}.png'),
    'visualize': ('visualize', '{evil}', '{image}', '--out', '{out}.png'),
    'export': ('export', '{evil}', '{out}.onnx'),
    'demo': ('demo', '{evil}'),
    'features': ('features', '{evil}', '{folder}', '--out', '{out}.npz'),
    'convert': ('convert', '{evil}', '{out}.pth', '--to', 'plugin', '--ignore-objects'),
}
BACKBONE = ('model', 'backbone')
PLACES = {
    ('model', 'head', 'loss'): 'reconstruct visualize demo convert',
    ('model', 'data_preprocessor'): 'reconstruct visualize demo convert',
    BACKBONE: 'reconstruct visualize demo convert export features',
    ('pipeline', 1): 'reconstruct visualize demo convert',
}


@pytest.fixture
def write(tmp_path):
    """Write a checkpoint in which one part of the config is another one."""

    def write(place, part, suffix='.pth'):
        content = torch.load(write_checkpoint(tmp_path / 'good.pth', mask_ratio=0.5, model_patch_size=16))
        note = content['simmim_plugin']
        note['model']['head'] = dict(type='SimMIMHead')
        node = note
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = part
        path = tmp_path / f'evil{suffix}'
        if suffix == '.pth':
            torch.save(content, path)
        else:
            safetensors.torch.save_file(content['state_dict'], path, {'simmim_plugin': json.dumps(note)})
        return path

    return write


def programs(marker):
    """Parts of a config for which MMEngine imports and calls something, each of which makes the file `marker`."""
    command = f'touch {marker}'
    return {
        'path': dict(type='os.system', command=command),
        'scope': dict(type='system', _scope_='os', command=command),
        'class': dict(type='subprocess.Popen', args=['touch', str(marker)]),
        'ending': dict(type='os.system.SimMIMViT', command=command),
        'mask': dict(type='subprocess.run.MaskGenerator', args=['touch', str(marker)]),
    }


CASES = [
    (place, command, kind)
    for place, commands in PLACES.items()
    for command in commands.split()
    for kind in (('path', 'scope', 'class') if command == 'reconstruct' else ('path',))
]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(('place', 'command', 'kind'), CASES)
def test_no_tool_runs_it(place, command, kind, suffix, write, image_folder, tmp_path):
    part = programs(tmp_path / 'run')[kind]
    if place[0] == 'pipeline':  # only what is called a mask generator is built
        part = programs(tmp_path / 'run')['mask']
    elif place == BACKBONE and command in ('export', 'features'):  # only what is called a SimMIMViT is built
        part = programs(tmp_path / 'run')['ending']
    evil = write(place, part, suffix)
    words = dict(evil=evil, image=next(image_folder.rglob('*.jpg')), folder=image_folder, out=tmp_path / 'out')
    with pytest.raises(SystemExit) as end:
        cli.main([word.format(**words) for word in COMMANDS[command]])
    message = str(end.value).splitlines()[0]
    assert re.match(rf"error: checkpoint '{evil}': its config has .*type='{part['type']}'", message), message
    assert '.'.join(map(str, place)).replace('.1', '[1]') in message
    assert not (tmp_path / 'run').exists() and not list(tmp_path.glob('out*'))


def test_they_would_run(tmp_path):
    from mmengine.registry import MODELS

    with pytest.raises(TypeError):  # the result is a number, which cannot be called
        MODELS.build(programs(tmp_path / 'run')['path'])()
    assert (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (torch.zeros(2), 'Tensor'), ({1, 2}, 'set'), (torch.float16, 'dtype'), (b'1', 'bytes'), (1j, 'complex'),
        ([0, {'deep': {3}}], 'set'), ({('a', 1): 2}, 'tuple'),
    ],
)  # fmt: skip
def test_values_are_plain(value, words, write):
    path = write(('model', 'backbone', 'anything'), value)
    with pytest.raises(ValueError, match=rf"checkpoint '{path}': its config has .*model.backbone.anything.*{words}"):
        read(path)


def test_it_is_bounded(write):
    for value in (nested(100), doubling(40)):
        path = write(('model', 'head', 'loss'), value)
        with pytest.raises(ValueError, match=r'nested more than 64 deep|holds more than 1000000 values'):
            read(path)
    path = write(('model', 'head', 'loss'), 1, '.safetensors')
    tensors = load_file(path)['state_dict']
    for text in ('[' * 100_000, '{"model": '):
        safetensors.torch.save_file(tensors, path, {'simmim_plugin': text})
        with pytest.raises(ValueError, match=f"checkpoint '{path}'.*its config is no JSON"):
            read(path)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubling(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_scopes_and_initial_weights_are_ignored(write, tmp_path):
    """MMEngine notes the scope of a part; `init_cfg` says where weights came from, and they come from this file."""
    init = dict(type='os.system', command=f'touch {tmp_path / "run"}')
    path = write(BACKBONE, TINY | dict(_scope_='mmpretrain', init_cfg=init))
    model, _ = load_pretrained(path)
    assert model.backbone.init_cfg is None
    assert '_scope_' not in read(path).backbone


def test_types_of_parts_that_are_not_built_may_be_any(write):
    """A detector's or a user's own parts, which no tool of ours builds."""
    path = write(('model', 'type'), 'mypackage.MyModel')
    assert read(path).model['type'] == 'mypackage.MyModel'
    path = write(('pipeline', 0), dict(type='mmdet.LoadAnnotations', with_bbox=True))
    load_pretrained(path)
