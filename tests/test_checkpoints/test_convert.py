"""Conversion of files: kinds, configs, and loading the results here and in the other projects."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.checkpoints import pretrained
from helpers.commands import run_streams
from helpers.models import TINY, assert_close
from helpers.other_projects import CLS, WIDE, assert_same, mmpretrain_model, plugin_state
from helpers.paths import ROOT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import NOTE, load_file, save_file
from simmim_plugin.checkpoints.loading import load_pretrained
from simmim_plugin.checkpoints.state_dicts import from_plugin, recognise
from simmim_plugin.models.layers.relative_position import relative_position_index
from simmim_plugin.registry import build_part


def official_state(reference: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The reference's state dict with the buffers that its files also hold."""
    state = {name[6:]: torch.from_numpy(value) for name, value in reference.items() if name.startswith('state/')}
    for name in [name for name in state if name.endswith('_table')]:
        state[name.replace('bias_table', 'index')] = relative_position_index((4, 4)).clone()
    return state


def test_official_pretraining_has_the_reference_loss(pretrain_reference, tmp_path):
    state = official_state(pretrain_reference)
    torch.save({'model': state, 'epoch': 99, 'max_accuracy': 0.0}, tmp_path / 'official.pth')
    report = convert_file(tmp_path / 'official.pth', tmp_path / 'ours.safetensors', 'plugin')
    assert report.kind == 'official' and not report.left_out and not report.notes
    model, pipeline = load_pretrained(tmp_path / 'ours.safetensors')
    image, mask = (torch.from_numpy(pretrain_reference[name]) for name in ('image', 'mask'))
    assert_close(model(image, mask=mask, mode='loss')['loss'], pretrain_reference['loss'])
    assert_close(model.reconstruct(image, mask), pretrain_reference['reconstruction'])
    assert [step['type'].split('.')[-1] for step in pipeline][-2:] == ['SimMIMMaskGenerator', 'PackSimMIMInputs']
    convert_file(tmp_path / 'ours.safetensors', tmp_path / 'back.pth', 'official')
    assert_same(torch.load(tmp_path / 'back.pth', weights_only=True)['model'], state)


def test_official_finetuning_has_the_reference_logits(finetune_reference, tmp_path):
    state = official_state(finetune_reference)
    torch.save({'model': state}, tmp_path / 'official.pth')
    assert recognise(state) == 'official'
    report = convert_file(tmp_path / 'official.pth', tmp_path / 'ours.pth', 'plugin')
    assert report.notes == ['added: backbone.mask_token, zeros (it is used with a mask only)']
    checkpoint = load_file(tmp_path / 'ours.pth')
    model = mmpretrain_model(checkpoint[NOTE]['model'])
    model.load_state_dict(checkpoint['state_dict'])
    with torch.no_grad():
        assert_close(model.eval()(torch.from_numpy(finetune_reference['image'])), finetune_reference['logits'])
    convert_file(tmp_path / 'ours.pth', tmp_path / 'back.safetensors', 'official')
    assert_same(load_file(tmp_path / 'back.safetensors')['state_dict'], state)


def test_our_own_config_is_carried_over_and_tells_the_size(tmp_path):
    state = plugin_state('wide')
    note = dict(model=dict(type='SimMIM', backbone={**TINY, **WIDE}), pipeline=[dict(type='LoadImage', channels=3)])
    save_file({'state_dict': state, NOTE: note}, tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / 'b.safetensors', 'plugin')
    model, pipeline = load_pretrained(tmp_path / 'b.safetensors')
    assert model.backbone.grid == (4, 6) and pipeline == note['pipeline']
    save_file({'state_dict': state, NOTE: dict(model=note['model'])}, tmp_path / 'a.pth')  # no pipeline: one is added
    convert_file(tmp_path / 'a.pth', tmp_path / 'e.pth', 'plugin')
    model, pipeline = load_pretrained(tmp_path / 'e.pth')
    assert model.backbone.grid == (4, 6) and pipeline[0]['type'] == 'simmim_plugin.LoadImage'
    report = convert_file(tmp_path / 'b.safetensors', tmp_path / 'c.pth', 'timm')
    assert 'img_size=(64, 96)' in report.notes[0]
    assert sorted(report.left_out) == ['backbone.mask_token', 'head.decoder.bias', 'head.decoder.weight']
    with pytest.raises(ValueError, match=r'has 80 rows, which no square grid .* --img-size HEIGHT WIDTH'):
        convert_file(tmp_path / 'c.pth', tmp_path / 'd.pth', 'plugin')
    convert_file(tmp_path / 'c.pth', tmp_path / 'd.pth', 'plugin', img_size=(64, 96))
    back = load_file(tmp_path / 'd.pth')
    assert tuple(back[NOTE]['model']['backbone']['img_size']) == (64, 96)
    assert not back['state_dict'].pop('backbone.mask_token').any()
    assert_same(back['state_dict'], {k: v for k, v in state.items() if k not in report.left_out})


def test_a_bare_backbone_loads_where_the_family_loads_one(tmp_path):
    """MMEngine's own `init_cfg`, as in MMDetection and MMSegmentation."""
    state = plugin_state('pretrain')
    save_file({'state_dict': state}, tmp_path / 'a.pth')
    report = convert_file(tmp_path / 'a.pth', tmp_path / 'bare.pth', 'backbone')
    assert report.left_out == ['head.decoder.weight', 'head.decoder.bias']
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'bare.pth'))
    model = build_part({**TINY, **CLS, 'init_cfg': init})
    model.init_weights()
    loaded = model.state_dict()
    assert torch.equal(loaded['blocks.2.mlp.fc2.weight'], state['backbone.blocks.2.mlp.fc2.weight'])
    table = state['backbone.rel_pos_bias.relative_position_bias_table']
    assert torch.equal(loaded['blocks.1.attn.relative_position_bias_table'], table)


def tool(name: str, *arguments: object) -> tuple[int, str, str]:
    return run_streams(sys.executable, ROOT / f'tools/{name}.py', *arguments)


@pytest.mark.slow
def test_the_tools(tmp_path):
    """Official file -> ours -> a picture by tools/reconstruct.py; and errors in one line."""
    state = from_plugin(plugin_state('pretrain'), 'official').state
    torch.save({'model': state, 'config': Path('needs/unpickling')}, tmp_path / 'official.pth')
    code, _, errors = tool('convert_checkpoint', tmp_path / 'official.pth', tmp_path / 'ours.pth', '--to', 'plugin')
    assert code == 1 and errors.startswith('error: checkpoint ')
    assert 'pathlib.PosixPath), which are refused' in errors and '--ignore-objects' in errors
    code, output, errors = tool(
        'convert_checkpoint', tmp_path / 'official.pth', tmp_path / 'ours.pth', '--to=plugin', '--ignore-objects'
    )  # fmt: skip
    assert code == 0, errors
    assert output.splitlines() == ['recognised: official', f'54 tensors written: {tmp_path / "ours.pth"}']
    _, output, _ = tool('convert_checkpoint', tmp_path / 'ours.pth', tmp_path / 'beit.safetensors', '--to=timm')
    lines = output.splitlines()
    assert lines[:2] == ['recognised: plugin', 'left out: backbone.mask_token']
    assert lines[4].startswith("model: timm.create_model('beit_base_patch16_224', checkpoint_path='")
    spec = importlib.util.find_spec('skimage')
    photo = Path(spec.origin).parent / 'data/astronaut.png'
    code, _, errors = tool('reconstruct', tmp_path / 'ours.pth', photo, '--out', tmp_path / 'picture.png')
    assert code == 0 and (tmp_path / 'picture.png').is_file(), errors


def test_channels_are_adapted_on_request(tmp_path):
    """As timm's `adapt_input_conv` (see also test_fit.py); a decoder of pixels of the old channels is left out."""
    save_file(plugin_state('pretrain'), tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / 'rgb.pth', 'plugin')  # with a config of its own
    five = dict(mean=[1.0] * 5, std=[2.0] * 5)
    with pytest.raises(ValueError, match=r'--mean None and --std None: 5 values of each are needed'):
        convert_file(tmp_path / 'rgb.pth', tmp_path / 'b.pth', 'plugin', in_channels=5)
    report = convert_file(tmp_path / 'rgb.pth', tmp_path / 'b.pth', 'plugin', in_channels=5, **five)
    assert sorted(report.left_out) == ['head.decoder.bias', 'head.decoder.weight']
    written, name = load_file(tmp_path / 'b.pth'), 'backbone.patch_embed.proj.weight'
    model = written[NOTE]['model']
    assert model['backbone']['in_channels'] == 5 and model['data_preprocessor']['mean'] == five['mean']
    assert written[NOTE]['pipeline'][0]['channels'] == 5
    weight = plugin_state('pretrain')[name]
    expected = weight[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(written['state_dict'][name], expected)
    assert_same(
        {k: v for k, v in written['state_dict'].items() if k != name},
        {k: v for k, v in plugin_state('pretrain').items() if k != name and not k.startswith('head.')},
    )
    tool = [sys.executable, str(ROOT / 'tools/convert_checkpoint.py')]
    code, output, errors = run_streams(
        *tool,
        tmp_path / 'rgb.pth',
        tmp_path / 'c.pth',
        '--to',
        'timm',
        '--in-channels',
        '1',
        '--adapt-channels',
        'mean',
    )
    assert code == 0, errors
    assert 'in_chans=1' in output
    torch.testing.assert_close(load_file(tmp_path / 'c.pth')[name[9:]], weight.sum(1, keepdim=True))


def test_a_note_that_contradicts_the_weights_is_not_kept(tmp_path):
    model = pretrained(tmp_path / 'a.pth')
    content = torch.load(tmp_path / 'a.pth')
    content['simmim_plugin']['model']['backbone']['arch'] = {**TINY['arch'], 'embed_dims': 64}
    torch.save(content, tmp_path / 'a.pth')
    assert model.backbone.embed_dims == 48
    with pytest.raises(ValueError, match=r"a.pth': the checkpoint is of another .* instead of \(1, 1, 64\)"):
        convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin')
    assert not (tmp_path / 'b.pth').exists()


def test_nothing_is_written_where_mean_and_std_do_not_fit(tmp_path):
    pretrained(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'^--mean \[1, 2\] and --std None: 3 values of each are needed'):
        convert_file(tmp_path / 'a.pth', tmp_path / 'hf', 'hf', mean=[1, 2])
    assert not (tmp_path / 'hf').exists()
