"""`convert` with a Swin: sizes, channels, mean and std, and the configs that are written."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from helpers.models import assert_close
from helpers.other_projects import photos, randomise
from helpers.swin import ARCH, HEAD, PRETRAIN
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.loading import build_backbone, fit_checkpoint, load_pretrained
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.registry import MODELS

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.core
SIDE = 48


def pretrained() -> SimMIM:
    return randomise(SimMIM(copy.deepcopy(PRETRAIN), dict(HEAD)))


def test_the_config_in_a_file_is_kept_unless_the_size_changes(tmp_path):
    model = dict(type='simmim_plugin.SimMIM', backbone=PRETRAIN, head=HEAD)
    note = dict(model=model, pipeline=[dict(type='simmim_plugin.LoadImage')])
    torch.save({'state_dict': pretrained().state_dict(), 'simmim_plugin': note}, tmp_path / 'ours.pth')
    for side in (SIDE, 96):
        convert_file(tmp_path / 'ours.pth', tmp_path / 'b.pth', 'plugin', img_size=(side, side))
        back, pipeline = load_pretrained(tmp_path / 'b.pth')
        assert back.backbone.patch_embed.init_out_size == (side // 4, side // 4)
        crops = [each['size'] for each in pipeline if each['type'].endswith('RandomResizedCrop')]
        assert crops == ([] if side == SIDE else [[96, 96]])


def test_other_channels_on_the_way(tmp_path):
    torch.save({'state_dict': pretrained().state_dict()}, tmp_path / 'ours.pth')
    report = convert_file(tmp_path / 'ours.pth', tmp_path / 'five.pth', 'timm', in_channels=5)
    assert 'head.decoder.weight' in report.left_out and 'in_chans=5' in report.notes[-1]
    assert load_file(tmp_path / 'five.pth')['patch_embed.proj.weight'].shape == (4, 5, 4, 4)


def test_patches_keep_their_size(tmp_path):
    torch.save({'state_dict': pretrained().state_dict()}, tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match=r'^--patch-size 8: the patches of a Swin keep their size'):
        convert_file(tmp_path / 'ours.pth', tmp_path / 'b.pth', 'timm', patch_size=8)
    with pytest.raises(ValueError, match=r"^--num-heads 4: a Swin's bias tables say"):
        convert_file(tmp_path / 'ours.pth', tmp_path / 'b.pth', 'timm', num_heads=4)


@pytest.mark.parametrize(
    ('to', 'arguments', 'message'),
    [
        ('timm', dict(mean=[0.0] * 3, std=[1.0] * 3), r'--mean and --std have no place in --to timm'),
        ('hf', dict(mean=[0.0], std=[1.0]), r'--mean \[0.0\] and --std \[1.0\]: 3 values of each'),
        (
            'plugin',
            dict(img_size=(100, 50)),
            r'--img-size of 100 x 50 px: .* multiples of the patch, 16 px, e.g. 96 x 48',
        ),
        ('hf', dict(img_size=(96, 48)), r'--to hf: images of 96 x 48 px; config.json has one side'),
    ],
)
def test_arguments_that_do_nothing_or_do_not_fit_are_refused(tmp_path, to, arguments, message):
    torch.save({'state_dict': pretrained().state_dict()}, tmp_path / 'ours.pth')
    with pytest.raises(ValueError, match=f'^{message}'):
        convert_file(tmp_path / 'ours.pth', tmp_path / ('there' if to == 'hf' else 'b.pth'), to, **arguments)
    assert len(list(tmp_path.iterdir())) == 1


def test_mean_and_std_go_to_transformers_preprocessor(tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.save({'state_dict': pretrained().state_dict()}, tmp_path / 'ours.pth')
    mean, std = [10.0, 20.0, 30.0], [40.0, 50.0, 60.0]
    convert_file(tmp_path / 'ours.pth', tmp_path / 'hf', 'hf', mean=mean, std=std)
    reader = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'hf')
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    found = reader(pixels, return_tensors='pt')['pixel_values']
    expected = (torch.from_numpy(pixels) - torch.tensor(mean)) / torch.tensor(std)
    assert_close(found, expected.permute(2, 0, 1)[None].numpy())


def test_a_position_embedding_has_one_size_and_no_place_in_timm(tmp_path):
    state = {f'backbone.{key}': value for key, value in pretrained().backbone.state_dict().items()}
    path = tmp_path / 'a.pth'
    for rows, (to, size, message) in {
        144: ('timm', None, r"^--to timm: timm's Swin has no position embedding \(absolute_pos_embed\)"),
        288: ('plugin', (SIDE, SIDE), '^--img-size 48 48: the position embedding has 288 rows, not 144'),
        289: ('plugin', None, ''),
        290: ('plugin', None, '^absolute_pos_embed has 290 rows, which no square .* --img-size HEIGHT WIDTH'),
    }.items():
        torch.save(
            {'state_dict': {**state, 'backbone.absolute_pos_embed': torch.randn(1, rows, 4)}}, tmp_path / 'a.pth'
        )
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            convert_file(path, tmp_path / 'b.pth', to, img_size=size)
    config = read(tmp_path / 'b.pth').part('backbone')
    assert config['img_size'] == [68, 68]  # 17 x 17 patches of 4 px


@pytest.mark.parametrize('eps', [1e-5, 1e-3])
@torch.no_grad()
def test_the_epsilon_of_transformers(tmp_path, eps):
    transformers = pytest.importorskip('transformers')
    config = dict(image_size=SIDE, embed_dim=4, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=3)
    theirs = randomise(transformers.SwinModel(transformers.SwinConfig(**config, layer_norm_eps=eps)))
    theirs.save_pretrained(tmp_path / 'hf')
    model = MODELS.build({**PRETRAIN, 'type': 'mmpretrain.SwinTransformer'})
    saved = read(tmp_path / 'hf')
    content = {'state_dict': saved.state, 'simmim_plugin': saved.note}
    with pytest.raises(ValueError, match=r"^--num-heads 2: a Swin's bias tables say how many heads it has"):
        convert_file(tmp_path / 'hf', tmp_path / 'a.pth', 'plugin', num_heads=2)
    message = r'layer_norm_eps=0.001 in config.json, and the norms of Swin .* have 1e-05; it is another model'
    with nullcontext() if eps == 1e-5 else pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'hf', tmp_path / 'a.pth', 'plugin')
    with nullcontext() if eps == 1e-5 else pytest.raises(ValueError, match=message):
        fit_checkpoint(model, content)
        images = photos('pretrain')[..., :SIDE, :SIDE]
        model.load_state_dict(content['state_dict'])
        expected = theirs(images).last_hidden_state.transpose(1, 2).unflatten(2, (3, 3))
        model.eval()  # which returns nothing there
        assert_close(model(images)[-1], expected.numpy())
        assert_close(build_backbone(read(tmp_path / 'a.pth'))(images)[-1], expected.numpy())


@pytest.mark.parametrize(
    ('name', 'shape', 'message'),
    [
        ('stages.0.blocks.1.ffn.layers.0.0.weight', (17, 4), r'with .*; of another shape: stages.0.blocks.1.ffn'),
        ('stages.0.blocks.0.norm1.weight', (7,), r'of another shape: stages.0.blocks.0.norm1.weight \(7,\) instead of'),
        ('stages.0.blocks.1.attn.w_msa.relative_position_bias_table', (9, 1), r'table \(9, 1\) instead of \(25, 1'),
        ('patch_embed.projection.weight', (4, 48), r'projection.weight is of shape \(4, 48\), which that of no Swin'),
        ('stages.0.blocks.0.ffn.layers.0.0.weight', (), r'weight is of shape \(\), which that of no Swin is'),
    ],
)
@pytest.mark.parametrize('to', ['plugin', 'hf'])
def test_weights_of_no_swin_are_not_written(tmp_path, name, shape, message, to):
    state = {**pretrained().state_dict(), f'backbone.{name}': torch.zeros(shape)}
    torch.save({'state_dict': state}, tmp_path / 'odd.pth')
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'odd.pth', tmp_path / ('hf' if to == 'hf' else 'b.pth'), to)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(arch={**ARCH, 'embed_dims': 8}), r'\(4, 3, 4, 4\) instead of \(8, 3, 4, 4\)'),
        (dict(arch={**ARCH, 'num_heads': [2, 2, 4]}), r'table \(25, 1\) instead of \(25, 2\)'),
        (dict(type='os.system'), "holds a model with backbone 'os.system'|type='os.system', which is not built"),
    ],
)
def test_a_note_that_contradicts_the_weights_is_not_kept(tmp_path, change, message):
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=[1.0] * 3, std=[2.0] * 3)
    model = dict(type='SimMIM', backbone={**PRETRAIN, **change}, head=HEAD, data_preprocessor=preprocessor)
    note = dict(model=model, pipeline=[dict(type='LoadImage')])
    torch.save({'state_dict': pretrained().state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin')
    assert not (tmp_path / 'b.pth').exists()
