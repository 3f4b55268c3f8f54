import argparse
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from helpers.commands import run_streams
from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints.files import NOTE, load_file, save_file, tensors_of
from simmim_plugin.checkpoints.loading import load_pretrained


class Command:
    """Unpickled by anyone but us, it makes a file."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def yacs_config():
    """An object of `yacs.config.CfgNode`, as official checkpoints carry; nobody can import it while it is read."""

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    saved = {name: sys.modules.get(name) for name in ('yacs', 'yacs.config')}
    sys.modules['yacs'], sys.modules['yacs.config'] = types.ModuleType('yacs'), types.ModuleType('yacs.config')
    sys.modules['yacs.config'].__dict__['CfgNode'] = CfgNode
    config = CfgNode(MODEL=CfgNode(TYPE='vit', NAME='simmim', SIZES=[1, 2]), AMP='O1')
    config.__dict__['__immutable__'] = True
    config['MODEL'].__dict__['__immutable__'] = True

    def hide() -> None:
        for name, module in saved.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module

    yield config, hide


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('objects', ['known', 'ignore'])
def test_configs_of_other_projects_are_neither_needed_nor_built(tmp_path, yacs_config, objects, zipped):
    config, hide = yacs_config
    content = {
        'model': {'w': torch.arange(6.0)},
        'config': config,
        'args': argparse.Namespace(lr=0.1, nested=ConfigDict(a=dict(b=1))),
        'max_accuracy': np.float64(0.5),
        'array': np.ones(3),
        'history': {'loss': HistoryBuffer([1.0], [1])},
        'epoch': 99,
    }
    path = tmp_path / 'official.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    hide()
    assert 'yacs' not in sys.modules
    with pytest.raises(ValueError, match=r'holds Python objects \(yacs.config.CfgNode\).*--ignore-objects.*nothing'):
        load_file(path)  # what a resumed training is checked by
    read = load_file(path, objects=objects)
    assert 'yacs' not in sys.modules
    assert torch.equal(read['model']['w'], content['model']['w']) and read['epoch'] == 99
    for name in ('config', 'args', 'max_accuracy', 'array'):
        assert not isinstance(read[name], type(content[name])) and not getattr(read[name], 'lr', None)
    assert torch.equal(tensors_of(read)['w'], content['model']['w'])


def commands(marker) -> list[Command]:
    path = os.fspath(marker)
    return [
        Command(os.system, f'touch {path}'),
        Command(exec, f'open({path!r}, "w")'),
        Command(eval, f'open({path!r}, "w")'),
        Command(subprocess.check_call, ['touch', path]),
        Command(open, path, 'w'),
    ]


@pytest.mark.parametrize('objects', ['refuse', 'known', 'ignore'])
@pytest.mark.parametrize('number', range(5))
def test_no_code_of_a_file_is_run(tmp_path, number, objects):
    """Each of these makes a file when it is unpickled; the last lines prove that on `pickle` itself."""
    marker, path = tmp_path / 'run', tmp_path / 'evil.pth'
    evil = commands(marker)[number]
    torch.save({'state_dict': {'w': torch.ones(2)}, 'extra': [evil]}, path)
    blocked = number == 0  # PyTorch refuses the modules os and posix whatever one allows
    if objects == 'ignore' and not blocked:
        assert torch.equal(load_file(path, objects=objects)['state_dict']['w'], torch.ones(2))
    else:
        with pytest.raises(
            ValueError, match='run commands' if blocked else 'which are refused. To take only the tensors'
        ):
            load_file(path, objects=objects)
    tool = [sys.executable, str(ROOT / 'tools/convert_checkpoint.py'), str(path), str(tmp_path / 'x.pth'), '--to=timm']
    if objects == 'ignore' and number in (0, 1):  # through the tool as well
        code, _, errors = run_streams(*tool, '--ignore-objects')
        assert code == 1 and 'error: ' in errors
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_mapping_of_an_unknown_class_is_ignored_too(tmp_path):
    module = types.ModuleType('gone')
    module.__dict__['Settings'] = type('Settings', (dict,), {'__module__': 'gone'})
    sys.modules['gone'] = module
    nested = module.Settings(a=module.Settings(b=2), c=np.int64(3))
    torch.save({'state_dict': {'w': torch.ones(2)}, 'settings': nested}, tmp_path / 'a.pth')
    del sys.modules['gone']
    with pytest.raises(ValueError, match=r'gone.Settings'):
        load_file(tmp_path / 'a.pth', objects='known')
    assert load_file(tmp_path / 'a.pth', objects='ignore')['state_dict']['w'].sum() == 2


def test_a_whole_pickled_model_is_told_from_a_state_dict(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'model.pth')
    read = load_file(tmp_path / 'model.pth', objects='ignore')
    with pytest.raises(ValueError, match=r'type Linear. If it is a whole pickled model.*model.state_dict\(\)'):
        tensors_of(read)
    with pytest.raises(ValueError, match='no state dict'):
        tensors_of({'state_dict': {}, 'epoch': 3})


def test_wrappers_of_a_state_dict_come_off():
    weights = {'a.b': torch.ones(1), 'c': torch.zeros(1)}
    for checkpoint in (
        weights,
        {'model': weights, 'optimizer': {}},
        {'state_dict': {f'module.{k}': v for k, v in weights.items()}},
        {'model': {'state_dict': {f'module._orig_mod.{k}': v for k, v in weights.items()}}},
    ):
        assert tensors_of(checkpoint) == weights


@pytest.mark.parametrize('name', ['a.pth', 'deep/er/a.pt', 'a.safetensors'])
def test_written_files_rebuild_the_model(tmp_path, name):
    torch.manual_seed(0)
    model = SimMIM(backbone=TINY)
    load = dict(type='LoadImage', ratio=(1, 2), channels=None)
    note = dict(model=dict(type='SimMIM', backbone=TINY), pipeline=[load])
    save_file({'state_dict': model.state_dict(), NOTE: note, 'meta': {'epoch': 1}}, tmp_path / name)
    loaded, pipeline = load_pretrained(tmp_path / name)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert pipeline[0]['type'] == 'LoadImage' and tuple(pipeline[0]['ratio']) == (1, 2)
    (tmp_path / 'usual').touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / 'usual').stat().st_mode  # other users may read it
    (tmp_path / 'usual').unlink()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [os.path.basename(name)]  # nothing temporary


def test_safetensors_take_views_and_shared_tensors_and_others_can_read_them(tmp_path):
    from safetensors.torch import load_file as theirs

    table = torch.randn(6, 4)
    state = {'a': table, 'b': table, 'half': table[:3], 'turned': table.T}
    save_file({'state_dict': state}, tmp_path / 'a.safetensors')
    for name, value in theirs(tmp_path / 'a.safetensors').items():
        assert torch.equal(value, state[name])
    assert load_file(tmp_path / 'a.safetensors').keys() == {'state_dict'}
    save_file({'model': {'row': torch.zeros(100_000)[:10]}}, tmp_path / 'a.pth')  # not all of what it is a view of
    assert (tmp_path / 'a.pth').stat().st_size < 10_000


def test_files_that_cannot_be_written_or_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a.onnx': the name must end in .pth, .pt, .bin, .safetensors"):
        save_file({}, tmp_path / 'a.onnx')
    with pytest.raises(ValueError, match='config in the checkpoint is not plain data'):
        save_file({'state_dict': {'w': torch.ones(1)}, NOTE: {'type': SimMIM}}, tmp_path / 'a.safetensors')
    (tmp_path / 'b.safetensors').write_bytes(b'no such thing')
    with pytest.raises(ValueError, match=r"b.safetensors' cannot be read: it is damaged"):
        load_file(tmp_path / 'b.safetensors')
    with pytest.raises(ValueError, match="objects='all' is unknown"):
        load_file(tmp_path / 'b.safetensors', objects='all')
    path = tmp_path / 'c.pth'
    save_file({'w': torch.ones(1)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):  # a function that cannot be pickled
        save_file({'w': lambda: None}, path)
    assert load_file(path)['w'] == 1 and [path.name for path in tmp_path.glob('.*')] == []
