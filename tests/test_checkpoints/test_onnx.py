"""Exported backbones are run in ONNX Runtime, on photos."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.commands import run_streams
from helpers.models import TINY, assert_close
from helpers.other_projects import FINETUNE, KINDS, backbone_state, photos, plugin_state
from helpers.paths import ROOT
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import save_file
from simmim_plugin.checkpoints.loading import build_backbone
from simmim_plugin.checkpoints.onnx import export_onnx
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.registry import build_part

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.fixture
def checkpoints(tmp_path):
    """A function that writes a checkpoint of a kind and returns its path."""

    def write(kind: str):
        save_file(plugin_state(kind), tmp_path / 'state.pth')
        convert_file(tmp_path / 'state.pth', tmp_path / f'{kind}.safetensors', 'plugin')
        return tmp_path / f'{kind}.safetensors'

    return write


def run(path, images: Tensor, output: str = 'features') -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run([output], {'images': images.numpy()})[0])


def convert_to_pth(path, folder):
    convert_file(path, folder / 'converted.pth', 'plugin')
    return folder / 'converted.pth'


@torch.no_grad()
def pytorch(kind: str, images: Tensor, **changes) -> np.ndarray:
    model = build_part({**TINY, **changes}).eval()
    model.load_state_dict(backbone_state(plugin_state(kind)))
    return model(images)[0].numpy()


def test_a_pretrained_backbone(checkpoints, tmp_path):
    out = tmp_path / 'new/backbone.onnx'
    assert export_onnx(checkpoints('pretrain'), out) < 1e-4
    model = onnx.load(str(out))
    onnx.checker.check_model(model)
    (images,), (features,) = model.graph.input, model.graph.output
    batch, *rest = images.type.tensor_type.shape.dim
    assert batch.dim_param and [side.dim_value for side in rest] == [3, 64, 64]
    assert (images.name, features.name) == ('images', 'features')
    assert [path.name for path in out.parent.iterdir()] == ['backbone.onnx']  # weights inside
    two = photos('pretrain')
    expected = pytorch('pretrain', two)
    assert expected.shape == (2, 48, 4, 4)
    assert_close(run(out, two), expected)
    assert_close(run(out, two.repeat(8, 1, 1, 1)[:13]), np.tile(expected, (8, 1, 1, 1))[:13])


def test_another_size_and_output(checkpoints, tmp_path):
    """Tables are interpolated as in the backbone."""
    export_onnx(checkpoints('pretrain'), tmp_path / 'a.onnx', size=(64, 96), out_type='raw')
    images = photos('wide')
    assert_close(run(tmp_path / 'a.onnx', images), pytorch('pretrain', images, out_type='raw'))


def test_a_classifier_gives_logits(checkpoints, tmp_path, capsys):
    path = checkpoints('finetune')
    export_onnx(path, tmp_path / 'a.onnx')
    assert capsys.readouterr().out.splitlines()[0].endswith('Output: logits')
    state, images = read(path).state, photos('finetune')
    expected = (
        pytorch('finetune', images, **FINETUNE) @ state['head.fc.weight'].numpy().T + state['head.fc.bias'].numpy()
    )
    assert expected.shape == (2, 7)
    assert_close(run(tmp_path / 'a.onnx', images, 'logits'), expected)


@pytest.mark.parametrize('kind', ['pretrain'])
def test_one_file_for_any_height_and_width(checkpoints, tmp_path, kind):
    """The table is interpolated in the file."""
    changes = KINDS[kind]
    out_type = changes.get('out_type', 'raw')
    export_onnx(checkpoints(kind), tmp_path / 'a.onnx', out_type=out_type, any_size=True)
    shape = onnx.load(str(tmp_path / 'a.onnx')).graph.input[0].type.tensor_type.shape.dim
    assert [bool(side.dim_param) for side in shape] == [True, False, True, True]
    for height, width in ((64, 64), (64, 96), (96, 64), (32, 160), (2048, 32)):
        images = torch.nn.functional.interpolate(photos('pretrain'), (height, width))
        expected = pytorch(kind, images, **{**changes, 'out_type': out_type})
        assert_close(run(tmp_path / 'a.onnx', images), expected, 1e-4)


def test_any_size_is_refused_where_tables_are_not_all(tmp_path):
    save_file(plugin_state('channels'), tmp_path / 'state.pth')
    convert_file(tmp_path / 'state.pth', tmp_path / 'b.pth', 'plugin', mean=[1.0] * 5, std=[2.0] * 5)
    with pytest.raises(ValueError, match=r'--any-size: the model has a position embedding, .*give --size'):
        export_onnx(tmp_path / 'b.pth', tmp_path / 'a.onnx', any_size=True)


def test_parts_of_dense_models_are_named_as_left_out(checkpoints, tmp_path, capsys):
    content = torch.load(convert_to_pth(checkpoints('pretrain'), tmp_path))
    content['state_dict'] |= {'neck.ups.weight': torch.zeros(2), 'decode_head.conv.weight': torch.zeros(2)}
    torch.save(content, tmp_path / 'dense.pth')
    export_onnx(tmp_path / 'dense.pth', tmp_path / 'a.onnx')
    assert 'Output: features of the backbone; not exported: decode_head, head, neck' in capsys.readouterr().out


@pytest.mark.slow
def test_a_finetuned_backbone_and_many_channels(checkpoints, tmp_path):
    export_onnx(checkpoints('finetune'), tmp_path / 'a.onnx', out_type='avg_featmap', opset=18)
    assert onnx.load(str(tmp_path / 'a.onnx')).opset_import[0].version == 18
    images = photos('finetune')
    assert_close(run(tmp_path / 'a.onnx', images), pytorch('finetune', images, **FINETUNE))
    state = plugin_state('channels')
    save_file(state, tmp_path / 'state.pth')
    convert_file(tmp_path / 'state.pth', tmp_path / 'b.pth', 'plugin', mean=[1.0] * 5, std=[2.0] * 5)
    export_onnx(tmp_path / 'b.pth', tmp_path / 'b.onnx', size=(96, 64))  # a position embedding, interpolated
    images = photos('channels').repeat(1, 1, 2, 1)[:, :, :96]
    expected = pytorch('channels', images, in_channels=5, use_abs_pos_embed=True)
    assert_close(run(tmp_path / 'b.onnx', images), expected)


def test_what_cannot_be_exported(checkpoints, tmp_path, monkeypatch):
    pretrained = checkpoints('pretrain')
    with pytest.raises(ValueError, match='opset=0 must be a whole number of at least 1'):
        export_onnx(pretrained, tmp_path / 'a.onnx', opset=0)
    with pytest.raises(ValueError, match=r'--out-type avg_featmap needs fc_norm, .* use featmap, cls_token or raw'):
        build_backbone(read(pretrained), out_type='avg_featmap')
    with pytest.raises(ValueError, match='--out-type featmap needs norm, which this checkpoint lacks; use avg_featmap'):
        build_backbone(read(checkpoints('finetune')), out_type='featmap')
    with pytest.raises(ValueError, match='both sides must be multiples of the patch, 16 px'):
        build_backbone(read(pretrained), img_size=(60, 64))
    with pytest.raises(ValueError, match=r'carries no config of simmim_plugin; .*simmim convert SRC DST'):
        build_backbone(read(tmp_path / 'state.pth'))
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxruntime: pip install 'simmim_plugin\[onnx\]'"):
        export_onnx(pretrained, tmp_path / 'a.onnx')


def test_an_export_that_differs_is_refused(checkpoints, tmp_path, monkeypatch):
    """Weights are changed in the file before it is compared."""
    export = torch.onnx.export

    def wrong(model, arguments, path, **kwargs):
        export(model, arguments, path, **kwargs)
        graph = onnx.load(path)
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith('norm.bias'))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(graph, path)

    monkeypatch.setattr(torch.onnx, 'export', wrong)
    with pytest.raises(RuntimeError, match='ONNX Runtime and PyTorch differ by 1'):
        export_onnx(checkpoints('pretrain'), tmp_path / 'a.onnx')
    assert not (tmp_path / 'a.onnx').exists()


@pytest.mark.slow
def test_the_tool(checkpoints, tmp_path):
    tool = [sys.executable, str(ROOT / 'tools/export_onnx.py'), str(checkpoints('pretrain'))]
    code, output, errors = run_streams(*tool, tmp_path / 'a.onnx')
    assert code == 0, errors
    assert '\nONNX Runtime equals PyTorch, batches of 1 and 3: largest difference ' in output
    assert_close(run(tmp_path / 'a.onnx', photos('pretrain')), pytorch('pretrain', photos('pretrain')))
    code, _, errors = run_streams(*tool, tmp_path / 'a.bin')
    assert code == 1 and "a.bin': the name must end in .onnx" in errors
