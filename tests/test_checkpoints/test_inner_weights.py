"""Weights of the model in a MaskedBackbone: by its library's names, from our checkpoints, from a stranger's file."""

import resource
import time
from typing import Any

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from safetensors.torch import save_file
from torch import nn

from helpers.backbones import BACKBONES, FAST, library_model, randomise
from helpers.checkpoints import MEAN, PIPELINE, STD
from helpers.other_projects import mmpretrain_model, photos
from simmim_plugin import MaskedBackbone, SimMIM, load_pretrained
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.loading import build_backbone, fit_checkpoint
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.registry import build_part

EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
VIT = BACKBONES['timm-vit']
ORDINARY = dict(
    type='SimMIMViT', arch=dict(embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=192), img_size=64,
    use_shared_rel_pos_bias=False, use_abs_pos_embed=True, layer_scale_init_value=0.0,
)  # fmt: skip


def backbone_of(name):
    return dict(type='MaskedBackbone', **BACKBONES[name])


def write(path, backbone, **changes):
    """A pretraining checkpoint; `changes` are those of the config in it."""
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=MEAN, std=STD)
    model = randomise(SimMIM(backbone=backbone, data_preprocessor=preprocessor))
    noted = dict(type='SimMIM', backbone={**backbone, **changes}, data_preprocessor=preprocessor)
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': dict(model=noted, pipeline=PIPELINE)}, path)
    return model


@pytest.mark.parametrize('name', EACH)
@torch.no_grad()
def test_a_checkpoint_rebuilds_its_model(name, tmp_path):
    model = write(tmp_path / 'a.pth', backbone_of(name))
    backbone: Any = model.backbone
    images = photos('any')[..., : backbone.img_size[0], : backbone.img_size[1]]
    side = images.shape[2] // backbone.patch_size
    mask = torch.zeros(2, side, side)
    mask[:, 0] = 1
    rebuilt, pipeline = load_pretrained(tmp_path / 'a.pth')
    assert pipeline == PIPELINE
    assert torch.equal(rebuilt.reconstruct(images, mask), model.reconstruct(images, mask))
    assert torch.equal(build_backbone(read(tmp_path / 'a.pth'))(images)[0], backbone(images)[0])


@pytest.mark.parametrize('name', EACH)
@torch.no_grad()
def test_weights_of_the_library_alone_or_in_a_classifier(name, tmp_path):
    theirs: Any = randomise(MaskedBackbone(**BACKBONES[name]), seed=1)
    images = photos('any')[..., : theirs.img_size[0], : theirs.img_size[1]]
    expected = theirs(images)[0]
    state = {k: v.clone() for k, v in getattr(theirs.model, 'timm_model', theirs.model).state_dict().items()}
    files = {
        'alone.pth': state,
        'classifier.pth': {f'vit.{k}': v for k, v in state.items()} | {'classifier.weight': torch.ones(3, 4)},
        'compiled.pth': {'state_dict': {f'module._orig_mod.{k}': v for k, v in state.items()}},
        'ours.pth': {f'backbone.{k}': v for k, v in theirs.state_dict().items()},
    }
    for file, content in files.items():
        torch.save(content, tmp_path / file)
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / file))
        model = build_part(dict(**backbone_of(name), init_cfg=init_cfg))
        model.init_weights()
        model.eval()
        assert torch.equal(model(images)[0], expected), file
        assert torch.equal(model.mask_token, theirs.mask_token) == (file == 'ours.pth')
        whole = SimMIM(backbone=backbone_of(name))
        fitted = fit_checkpoint(whole, {'state_dict': dict(content.get('state_dict', content))})
        whole.load_state_dict(fitted.state, strict=False)
        assert torch.equal(whole.eval().backbone(images)[0], expected), file


def test_a_classifier_of_timm_and_a_folder_of_transformers(tmp_path):
    """As they are stored: with a head; names of the file differ from those in memory by the prefix."""
    from transformers import AutoConfig, ViTForImageClassification

    images = photos('any')
    config = dict(VIT['model'])
    theirs = randomise(timm.create_model('vit_tiny_patch16_224', num_classes=7, img_size=64, depth=2, embed_dim=48))
    save_file(theirs.state_dict(), tmp_path / 'a.safetensors')
    model = MaskedBackbone(config, init_cfg=dict(type='Pretrained', checkpoint=tmp_path / 'a.safetensors'))
    model.init_weights()
    expected = theirs.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(model.eval()(images)[0], expected)

    config = {k: v for k, v in BACKBONES['hf-vit']['model'].items() if k not in ('type', 'model_type')}
    config['hidden_act'] = 'relu'  # which a SimMIMViT does not have
    theirs = randomise(ViTForImageClassification(AutoConfig.for_model('vit', num_labels=7, **config)))
    theirs.save_pretrained(tmp_path / 'hf')
    for path in (tmp_path / 'hf', tmp_path / 'hf/model.safetensors'):
        init_cfg = dict(type='Pretrained', checkpoint=path)
        model = MaskedBackbone({**BACKBONES['hf-vit']['model'], 'hidden_act': 'relu'}, init_cfg=init_cfg)
        model.init_weights()
        expected = theirs.vit(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        assert torch.equal(model.eval()(images)[0], expected)


def test_the_classifier_of_a_library_is_not_taken_for_one_of_ours():
    """It has the name and the shape of MMPretrain's, but timm's head has a norm in front."""
    config = dict(BACKBONES['timm-convnext']['model'])
    theirs: Any = randomise(timm.create_model(config['name'], num_classes=5, depths=(1, 1, 1, 1), dims=config['dims']))
    backbone = dict(type='simmim_plugin.MaskedBackbone', **BACKBONES['timm-convnext'])
    head = dict(type='LinearClsHead', num_classes=5, in_channels=32)
    ours: Any = mmpretrain_model(dict(type='ImageClassifier', backbone=backbone, head=head))
    assert ours.head.fc.weight.shape == theirs.head.fc.weight.shape
    fitted: Any = fit_checkpoint(ours, {'state_dict': theirs.state_dict()})
    heads = ['head.fc.weight', 'head.fc.bias']
    assert fitted.skipped == heads and 'head.fc.weight' in fitted.kept
    assert not set(heads) & set(fitted.state)


def test_an_auxiliary_head_of_timm(tmp_path):
    theirs: Any = timm.create_model('volo_d1_224', num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / 'a.pth')
    assert 'aux_head.weight' in theirs.state_dict()
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    model: Any = MaskedBackbone(dict(type='timm', name='volo_d1_224'), init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda s: s.pop('blocks.1.mlp.fc1.bias'),
            r'not those of this VisionTransformer; not in the checkpoint: blocks.1.mlp',
        ),
        (lambda s: s.update({'blocks.2.norm1.bias': torch.ones(3)}), r'; not in the model: blocks.2.norm1.bias'),
        (
            lambda s: s.update(pos_embed=torch.ones(1, 5, 48)),
            r'of another shape: pos_embed \(1, 5, 48\) instead of \(1, 17, 48\). Give model the arguments',
        ),
    ],
)
def test_nothing_half_loaded(change, message, tmp_path):
    state = timm.create_model('vit_tiny_patch16_224', num_classes=7, img_size=64, depth=2, embed_dim=48).state_dict()
    change(state)
    torch.save(state, tmp_path / 'a.pth')
    model = MaskedBackbone(**VIT, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.init_weights()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'none of the names of VisionTransformer .*cls_token.*, but weight, bias'):
        model.init_weights()


UNTOLD: dict[str, Any] = {
    'timm-vit': (dict(num_heads=2), dict(num_heads=4), r'its model has blocks.0.attn.num_heads=2, not 4, .*\(num_h'),
    'hf-vit': (dict(hidden_act='relu'), {}, r"its model has \S+intermediate_act_fn='ReLU', not 'GELUActivation', enco"),
    'hf-dinov2': (
        dict(layer_norm_eps=1e-3), dict(layer_norm_eps=1e-4), r'layer.0.norm1.eps=0.001, not 0.0001, .*, layer_norm_eps'
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', UNTOLD)
def test_what_weights_do_not_tell_is_compared(name, tmp_path):
    theirs, ours, message = UNTOLD[name]
    backbone = backbone_of(name)
    write(tmp_path / 'a.pth', {**backbone, 'model': {**backbone['model'], **theirs}})
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match=message):
        build_part({**backbone, 'model': {**backbone['model'], **ours}, 'init_cfg': init_cfg}).init_weights()
    build_part({**backbone, 'model': {**backbone['model'], **theirs}, 'init_cfg': init_cfg}).init_weights()


@pytest.mark.parametrize('name', ['hf-vit', 'hf-dinov2', 'hf-dinov3', 'hf-convnext'])
def test_what_the_config_of_a_folder_says_is_compared(name, tmp_path):
    theirs: Any = library_model(name)
    theirs.save_pretrained(tmp_path)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path))
    build_part(dict(**backbone_of(name), init_cfg=init_cfg)).init_weights()
    for change, message in (
        (dict(num_attention_heads=4), r'its model has num_heads=2, not 4: .* \(num_attention_heads, '),
        (dict(layer_norm_eps=0.1), r'its model has norm_eps=1e-\d+, not 0.1: .*, layer_norm_eps'),
        (dict(hidden_act='relu'), r"its model has hidden_act='gelu', not 'relu'"),
    ):
        if name == 'hf-convnext' and 'num_attention_heads' in change:
            continue
        model = {**BACKBONES[name]['model'], **change}
        with pytest.raises(ValueError, match=message):
            build_part({**backbone_of(name), 'model': model, 'init_cfg': init_cfg}).init_weights()


def test_a_config_that_is_not_built_from_a_file_is_not_compared_and_says_so(tmp_path, capsys):
    write(tmp_path / 'a.pth', backbone_of('timm-vit'), model=dict(type='os.system'))
    MMLogger.get_instance('not compared')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    build_part(dict(**backbone_of('timm-vit'), init_cfg=init_cfg)).init_weights()
    assert "are not compared with those of the checkpoint: checkpoint '" in capsys.readouterr().out


def test_one_of_several_copies_in_a_file_is_chosen_by_its_prefix(tmp_path, capsys):
    """As of a teacher and a student: none is taken by chance."""
    config = dict(num_classes=0, img_size=64, depth=2, embed_dim=48)
    copies = {
        prefix: randomise(timm.create_model('vit_tiny_patch16_224', **config), seed).state_dict()
        for seed, prefix in enumerate(('teacher.', 'student.'))
    }
    torch.save({prefix + k: v for prefix, state in copies.items() for k, v in state.items()}, tmp_path / 'a.pth')
    for prefix, state in copies.items():
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix=prefix)
        for config in (backbone_of('timm-vit'), ORDINARY):
            MMLogger.get_instance(f'{prefix}{config["type"]}')
            model: Any = build_part(dict(**config, init_cfg=init_cfg))
            model.init_weights()
            found = getattr(model, 'model', model).state_dict()
            assert torch.equal(found['blocks.1.mlp.fc1.weight'], state['blocks.1.mlp.fc1.weight']), prefix
            other = 'student' if prefix == 'teacher.' else 'teacher'
            assert f'Skipped, not in the model: {other}.cls_token' in capsys.readouterr().out
    model = MaskedBackbone(**VIT, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    match = r"VisionTransformer 2 times, with the prefixes 'teacher.', 'student.'; choose one: .*prefix='teacher.'\)"
    with pytest.raises(ValueError, match=match):
        model.init_weights()


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(VIT['model'], name='hf-hub:a/b'), "model.name='hf-hub:a/b' is no model of timm"),
        (dict(VIT['model'], checkpoint_path='/etc/passwd'), 'model.checkpoint_path is not taken here'),
        (
            dict(type='os.system', command='true'),
            r"model.backbone.model.type='os.system', which is not built from a fi",
        ),
        (dict(type='mmpretrain.HuggingFaceClassifier'), 'which is not built from a file'),
        (
            dict(type='mmpretrain.TIMMBackbone', model_name='resnet18', norm_layer='os.system'),
            "model.norm_layer='os.system', a name, of which nothing is built",
        ),
        (
            dict(type='mmpretrain.ResNet', depth=18, norm_cfg=dict(type='os.system')),
            "model.norm_cfg.type='os.system', which is not built from a file",
        ),
        (
            dict(type='transformers', model_type='vit', attn_implementation='a/b'),
            "model='attn_implementation' is unkno",
        ),
        (dict(VIT['model'], depth=10**7), r'model.depth=10000000 must be at most 1024'),
        (dict(VIT['model'], embed_dim=12288), 'of another architecture'),
        (dict(VIT['model'], depth=1024), 'describes a far larger model than its weights are of'),
        (dict(VIT['model'], depth=3), 'of another architecture'),
        ({}, r"model=.* must be a dict with a 'type'"),
        (dict(type='timm', model_name='resnet18'), r'model.name=None is no model of timm'),
        (dict(VIT['model'], norm_layer='x'), r"timm refuses it \(KeyError: 'x'\)"),
        (
            dict(VIT['model'], embed_dim=-48),
            r'timm refuses it \(RuntimeError: Trying to create tensor with negative dim',
        ),
        (dict(VIT['model'], embed_dim=0), r'timm refuses it \(ZeroDivisionError'),
        (dict(VIT['model'], foo=1), r"timm refuses it \(TypeError: .* unexpected keyword argument 'foo'"),
        (dict(type='mmpretrain.ConvNeXt', arch='zzz'), r'mmpretrain.ConvNeXt refuses it \(AssertionError: Unavailable'),
        (dict(type='mmpretrain.ResNet', depth=18, foo=1), r'mmpretrain.ResNet refuses it \(TypeError'),
    ],
)
def test_the_config_of_a_stranger(model, message, tmp_path):
    write(tmp_path / 'a.pth', backbone_of('timm-vit'), model=model)
    start = time.monotonic()
    for use in (lambda: load_pretrained(tmp_path / 'a.pth'), lambda: build_backbone(read(tmp_path / 'a.pth'))):
        with pytest.raises(ValueError, match=message):
            use()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    'model',
    [
        dict(VIT['model'], reg_tokens=1 << 16),
        dict(
            type='transformers', model_type='vit', image_size=1536, patch_size=1, hidden_size=256, num_hidden_layers=1,
            num_attention_heads=1,
        ),
    ],
)  # fmt: skip
def test_weights_are_compared_before_the_model_takes_memory_or_runs(model, tmp_path, monkeypatch):
    write(tmp_path / 'a.pth', backbone_of('timm-vit'), model=model)
    monkeypatch.setattr('simmim_plugin.checkpoints.loading.build_part', lambda config: pytest.fail('it is built'))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for use in (lambda: load_pretrained(tmp_path / 'a.pth'), lambda: build_backbone(read(tmp_path / 'a.pth'))):
        with pytest.raises(ValueError, match='of another architecture'):
            use()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert time.monotonic() - start < 30


def test_unknown_arguments_in_a_file(tmp_path):
    write(tmp_path / 'a.pth', backbone_of('timm-vit'), foo=1)
    for use in (lambda: load_pretrained(tmp_path / 'a.pth'), lambda: build_backbone(read(tmp_path / 'a.pth'))):
        with pytest.raises(ValueError, match=r'config has model.backbone.foo, which MaskedBackbone does not take'):
            use()


def test_nothing_is_downloaded_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr('timm.models._builder.load_pretrained', lambda *args, **kwargs: pytest.fail('a download'))
    write(tmp_path / 'a.pth', backbone_of('timm-vit'), model=dict(VIT['model'], pretrained=True))
    load_pretrained(tmp_path / 'a.pth')


def test_conversion_checks_the_weights_and_lists_what_is_left_out(tmp_path):
    state = write(tmp_path / 'a.pth', backbone_of('timm-vit')).state_dict()
    report = convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'backbone')
    own = timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=64, depth=2, embed_dim=48).state_dict()
    assert load_file(tmp_path / 'b.pth')['state_dict'].keys() == own.keys()
    assert report.left_out == ['backbone.mask_token', 'head.decoder.weight', 'head.decoder.bias']
    content = torch.load(tmp_path / 'a.pth')
    for changed, message in (
        ({k: v for k, v in state.items() if '.blocks.1.' not in k}, 'backbone.model.blocks.1.norm1.weight'),
        ({'x.weight': torch.ones(2)}, 'backbone.model.cls_token'),
    ):
        torch.save({**content, 'state_dict': changed}, tmp_path / 'odd.pth')
        with pytest.raises(ValueError, match=f"odd.pth': the checkpoint is of another architecture: .*{message}"):
            convert_file(tmp_path / 'odd.pth', tmp_path / 'c.pth', 'backbone')
    assert not (tmp_path / 'c.pth').exists()
