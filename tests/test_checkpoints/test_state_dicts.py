"""Converted models are compared with the libraries they go to, on photos; round trips are exact."""

import os
from typing import Any

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from helpers.models import TINY, assert_close
from helpers.other_projects import (
    CLASSES,
    FINETUNE,
    KINDS,
    MEAN,
    STD,
    assert_same,
    backbone_state,
    mmpretrain_model,
    photos,
    plugin_state,
    randomise,
)
from simmim_plugin import SimMIM
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import NOTE, load_file, save_file
from simmim_plugin.checkpoints.loading import build_backbone, fit_checkpoint
from simmim_plugin.checkpoints.other_projects import facts_of
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.state_dicts import from_plugin, recognise, to_plugin
from simmim_plugin.checkpoints.their_configs import mmpretrain_config, timm_line
from simmim_plugin.registry import build_part

os.environ['HF_HUB_OFFLINE'] = '1'
BEITS = [kind for kind in KINDS if kind not in ('absolute', 'finetune-without-tables')]  # others: test_families.py
SQUARE = [kind for kind in KINDS if not kind.startswith('wide') and kind != 'absolute']


@torch.no_grad()
def ours(state: dict[str, Tensor], kind: str, out_type: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Our features (or another out_type) and logits."""
    backbone = build_part({**TINY, **KINDS[kind], **({'out_type': out_type} if out_type else {})}).eval()
    missing, unexpected = backbone.load_state_dict(backbone_state(state), strict=False)
    assert set(missing) <= {'mask_token'} and not unexpected
    (features,) = backbone(photos(kind))
    if 'head.fc.weight' not in state:
        return features, None
    return features, features @ state['head.fc.weight'].T + state['head.fc.bias']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('to', ['official', 'timm', 'hf', 'mmpretrain', 'backbone'])
def test_round_trips_from_ours(kind, to):
    state = plugin_state(kind)
    if kind.startswith('wide') and to in ('official', 'hf'):
        with pytest.raises(ValueError, match=rf"a grid of 4 x 6 patches cannot go to '{to}'"):
            from_plugin(state, to, (4, 6))
        return
    converted, left_out = from_plugin(state, to, (4, 6) if kind.startswith('wide') else (4, 4))
    back, nothing = to_plugin(converted, sure=True)
    lost = {name for name in state if name not in back}
    assert lost == set(left_out) and not nothing
    pretraining = 'head.decoder.weight' in state
    decoder, classifier = {'head.decoder.weight', 'head.decoder.bias'}, {'head.fc.weight', 'head.fc.bias'}
    held = {
        'official': set() if pretraining else {'backbone.mask_token'},
        'timm': {'backbone.mask_token', *(decoder if pretraining else ())},
        'hf': decoder if pretraining and kind != 'absolute' else set(),  # ViTForMaskedImageModeling has one
        'mmpretrain': {'backbone.mask_token', *(decoder if pretraining else ())},
        'backbone': decoder if pretraining else classifier,
    }
    assert lost == held[to]
    assert_same(back, {name: value for name, value in state.items() if name not in lost})
    assert_same(from_plugin(back, to, (4, 6) if kind.startswith('wide') else (4, 4)).state, converted)


@pytest.mark.parametrize('kind', BEITS)
def test_timm_gives_the_same_numbers(kind, tmp_path):
    state = plugin_state(kind)
    grid = (4, 6) if kind.startswith('wide') else (4, 4)
    path = str(tmp_path / 'beit.safetensors')
    save_file(from_plugin(state, 'timm', grid).state, path)
    facts = facts_of(state, (grid[0] * 16, grid[1] * 16), 4)
    model = eval(timm_line(facts, 'Beit', path), {'timm': timm}).eval()  # strict: all names, all shapes
    assert isinstance(model, Beit)
    features, logits = ours(state, kind, None if 'head.fc.weight' in state else 'cls_token')
    with torch.no_grad():
        assert_close(model(photos(kind)), (features if logits is None else logits).numpy())
    randomise(model)  # and theirs come to us
    assert recognise(model.state_dict()) == 'timm'
    theirs, left_out = to_plugin(model.state_dict(), sure=True)
    assert not left_out
    assert_same(from_plugin(theirs, 'timm', grid).state, dict(model.state_dict()))
    features, logits = ours(theirs, kind, None if 'head.fc.weight' in state else 'cls_token')
    with torch.no_grad():
        assert_close(model(photos(kind)), (features if logits is None else logits).numpy())


@pytest.mark.parametrize('kind', BEITS)
def test_mmpretrain_gives_the_same_numbers(kind):
    state = plugin_state(kind)
    grid = (4, 6) if kind.startswith('wide') else (4, 4)
    facts = facts_of(state, (grid[0] * 16, grid[1] * 16), 4)
    model = mmpretrain_model(mmpretrain_config(facts, 'BEiTViT')).eval()
    model.load_state_dict(from_plugin(state, 'mmpretrain', grid).state)
    features, logits = ours(state, kind)

    def compare() -> None:
        with torch.no_grad():
            assert_close(model.backbone(photos(kind))[0], features.numpy())
            if logits is not None:
                assert_close(model(photos(kind)), logits.numpy())

    compare()
    randomise(model)
    for checkpoint in (model.state_dict(), model.backbone.state_dict()):
        assert recognise(checkpoint) == 'mmpretrain'
        assert not to_plugin(checkpoint).left_out
    theirs = to_plugin(model.state_dict(), sure=True).state
    assert_same(from_plugin(theirs, 'mmpretrain', grid).state, dict(model.state_dict()))
    features, logits = ours(theirs, kind)
    compare()


@pytest.mark.parametrize('kind', SQUARE)
def test_transformers_gives_the_same_numbers(kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    state = plugin_state(kind)
    source = tmp_path / 'ours.pth'
    save_file({'state_dict': state, NOTE: {'model': {'backbone': {'arch': TINY['arch']}}}}, source)
    convert_file(source, tmp_path / 'hf', 'hf')
    classifier = 'head.fc.weight' in state
    load = transformers.BeitForImageClassification if classifier else transformers.BeitModel
    model, info = load.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys']
    features, logits = ours(state, kind, None if classifier else 'raw')

    def compare() -> None:
        with torch.no_grad():
            outputs = model.eval()(photos(kind))
        theirs = outputs.logits if classifier else outputs.last_hidden_state
        assert_close(theirs, (logits if classifier else features).numpy())

    compare()
    if kind != 'channels':  # and BeitImageProcessor's numbers, which differ by rounding
        preprocess = transformers.BeitImageProcessor.from_pretrained(tmp_path / 'hf')
        pixels = (photos(kind).permute(0, 2, 3, 1) * STD + MEAN).round().byte().numpy()
        assert_close(preprocess(list(pixels), return_tensors='pt')['pixel_values'], photos(kind).numpy())
    randomise(model)
    model.save_pretrained(tmp_path / 'theirs')  # on disk, and in memory: the names may differ
    saved = load_file(tmp_path / 'theirs/model.safetensors')
    theirs, left_out = to_plugin(saved)
    assert recognise(saved) == recognise(model.state_dict()) == 'hf' and not left_out
    assert_same(to_plugin(model.state_dict(), sure=True).state, theirs)
    assert_same(from_plugin(theirs, 'hf').state, saved['state_dict'])
    features, logits = ours(theirs, kind, None if classifier else 'raw')
    compare()
    report = convert_file(tmp_path / 'theirs', tmp_path / 'back.safetensors', 'plugin', **channels_of(kind))
    assert report.kind == 'hf' and not report.left_out
    back = load_file(tmp_path / 'back.safetensors')
    assert back[NOTE]['model']['backbone']['arch'] == TINY['arch']  # without a table, heads are read from config.json
    assert_same({k: v for k, v in back['state_dict'].items() if k in theirs}, theirs)


def channels_of(kind: str) -> dict:
    return dict(mean=[1.0] * 5, std=[2.0] * 5) if kind == 'channels' else {}


def test_masked_image_models_of_transformers_are_read():
    transformers = pytest.importorskip('transformers')
    config = transformers.BeitConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=64,
        layer_norm_eps=1e-6, use_mask_token=True, use_shared_relative_position_bias=True, vocab_size=11,
        attn_implementation='eager',
    )  # fmt: skip
    model = randomise(transformers.BeitForMaskedImageModeling(config))
    state, left_out = to_plugin(model.state_dict(), sure=True)
    assert left_out == ['lm_head.weight', 'lm_head.bias']
    mask = torch.rand(2, 4, 4) > 0.5
    backbone = build_part({**TINY, 'out_type': 'raw'}).eval()
    backbone.load_state_dict(backbone_state(state))
    with torch.no_grad():
        expected = model.lm_head(backbone(photos('pretrain'), mask)[0][:, 1:])
        assert_close(model(photos('pretrain'), bool_masked_pos=mask.flatten(1)).logits, expected.numpy())


def test_unknown_state_dicts_and_arguments_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'the families known are .* It starts with conv1.weight, fc.weight'):
        recognise({'conv1.weight': torch.ones(1), 'fc.weight': torch.ones(1)})
    state = plugin_state('absolute')
    with pytest.raises(ValueError, match="to='keras' is unknown; choose one of 'plugin'"):
        from_plugin(state, 'keras')
    with pytest.raises(ValueError, match='48 channels cannot be divided among 5 heads'):
        facts_of(state, num_heads=5)
    assert facts_of(plugin_state('pretrain')).img_size == (64, 64)
    with pytest.raises(ValueError, match=r'--num-heads 3: the bias tables have 4 heads'):
        facts_of(plugin_state('pretrain'), num_heads=3)
    with pytest.raises(ValueError, match=r'--num-heads=0 must be a whole number of at least 1'):
        facts_of(state, num_heads=0)
    with pytest.raises(
        ValueError, match=r'--img-size of 60 x 64 px: both sides must be multiples of the patch, 16 px, e.g. 64 x 64'
    ):
        facts_of(plugin_state('pretrain'), (60, 64))
    del state['backbone.pos_embed']
    with pytest.raises(ValueError, match='give it: --img-size'):
        facts_of(state, num_heads=4)
    path = tmp_path / 'a.pth'
    save_file(plugin_state('channels'), path)
    with pytest.raises(ValueError, match=r'--mean None and --std None: 5 values of each'):
        convert_file(path, tmp_path / 'b.pth', 'plugin')
    with pytest.raises(ValueError, match=r"^to='keras' is unknown; choose one of 'plugin'"):
        convert_file(path, tmp_path / 'b.pth', 'keras')
    with pytest.raises(ValueError, match=r"a.pth' is SRC"):
        convert_file(path, f'{tmp_path}/../{tmp_path.name}/a.pth', 'timm')
    with pytest.raises(ValueError, match='must be a folder for --to hf'):
        convert_file(path, tmp_path / 'b.safetensors', 'hf')
    with pytest.raises(ValueError, match=r'has neither model\.safetensors nor'):
        convert_file(tmp_path, tmp_path / 'b.pth', 'plugin')
    both = {**plugin_state('pretrain'), 'backbone.fc_norm.weight': torch.ones(48)}
    with pytest.raises(ValueError, match=r"norms \['norm', 'fc_norm'\]"):
        facts_of(both)


EVA: dict[str, Any] = dict(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=4, num_classes=0)
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    'DINOv3': (
        dict(use_abs_pos_emb=False, use_rot_pos_emb=True, num_reg_tokens=4, init_values=0.1),
        r'has no place for (backbone\.)?reg_token of the backbone',
    ),
    'rotary embedding and register': (
        dict(use_rot_pos_emb=True, num_reg_tokens=1, init_values=0.1),
        r'has no place for (backbone\.)?reg_token of the backbone',
    ),
    'rotary embedding alone': (dict(use_abs_pos_emb=False, use_rot_pos_emb=True), 'neither relative position bias'),
    'post-norm': (dict(use_post_norm=True), 'names of timm.s Beit, which EVA models share'),
    'gated MLP': (
        dict(mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True),
        r'no place for .*blocks.0.mlp.fc1_g.weight, .* of the backbone',
    ),
    'packed gated MLP': (
        dict(mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=False),
        'blocks.0.mlp.fc1',
    ),
    'heads of another width': ({}, 'say how many heads it has: .*--num-heads N'),
}  # fmt: skip


@pytest.mark.parametrize('wrapped', ['', 'backbone.'])
@pytest.mark.parametrize('name', OTHERS)
def test_other_models_with_the_same_names_are_refused(tmp_path, name, wrapped):
    """By `convert`, `init_cfg` and `load_from`, naming what they have."""
    changes, message = OTHERS[name]
    state = {wrapped + key: value for key, value in randomise(Eva(**{**EVA, **changes})).state_dict().items()}
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=message):
        convert_file(tmp_path / 'other.pth', tmp_path / 'ours.pth', 'plugin', img_size=(64, 64))
    arch = dict(TINY['arch'], num_layers=2)
    arguments = dict(TINY, arch=arch, use_shared_rel_pos_bias=False, use_abs_pos_embed=True, layer_scale_init_value=0.1)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match=message):
        build_part(dict(arguments, init_cfg=init_cfg)).init_weights()
    with pytest.raises(ValueError, match=message):
        fit_checkpoint(SimMIM(arguments), {'state_dict': state})
    assert not (tmp_path / 'ours.pth').exists()


def test_a_beit_without_tables_is_taken_with_its_heads(tmp_path):
    """EVA's giant is one: 16 heads, 88 channels each, where 64 channels would give 22."""
    model = randomise(Eva(**{**EVA, 'embed_dim': 176, 'num_heads': 2, 'global_pool': 'token'}))
    save_file(model.state_dict(), tmp_path / 'eva.safetensors')
    report = convert_file(tmp_path / 'eva.safetensors', tmp_path / 'ours.pth', 'plugin', num_heads=2)
    assert report.left_out == []
    backbone = build_backbone(read(tmp_path / 'ours.pth'), out_type='raw')
    assert backbone.blocks[0].attn.num_heads == 2
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(photos('pretrain'))[0], model.forward_features(photos('pretrain')), rtol=1e-5, atol=1e-4
        )


def test_heads_are_asked_for_where_64_channels_are_not_certain():
    state = plugin_state('absolute')
    with pytest.raises(ValueError, match=r'how many heads the 48 channels .* give --num-heads'):
        facts_of(state)
    assert facts_of(state, num_heads=4).arch['num_heads'] == 4
    wide = {name: torch.zeros([176 if side == 48 else side for side in value.shape]) for name, value in state.items()}
    with pytest.raises(ValueError, match=r'how many heads the 176 channels .*give --num-heads'):
        facts_of(wide)


@pytest.mark.parametrize('name', ['Data2VecVision', 'BeitForSemanticSegmentation'])
def test_other_models_of_hugging_face_that_are_beits(tmp_path, name, monkeypatch):
    """As SRC of `convert`, as `init_cfg` and as `load_from`: the folder. Their features are ours."""
    transformers = pytest.importorskip('transformers')
    widths = dict(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, image_size=64,
        patch_size=16, use_relative_position_bias=True, num_labels=CLASSES, layer_norm_eps=1e-6,
    )  # fmt: skip
    if name == 'Data2VecVision':
        config = transformers.Data2VecVisionConfig(**widths)
        model = randomise(transformers.Data2VecVisionForImageClassification(config))
        inner = model.data2vec_vision
    else:
        config = transformers.BeitConfig(**widths, out_indices=[1, 2, 3, 4], pool_scales=[1, 2])
        model = randomise(transformers.BeitForSemanticSegmentation(config))
        inner = model.beit
    model.save_pretrained(tmp_path / 'hf')
    with torch.no_grad():
        states = inner(photos('finetune'), output_hidden_states=True).hidden_states
        pooled = None if name != 'Data2VecVision' else inner(photos('finetune')).pooler_output
    convert_file(tmp_path / 'hf', tmp_path / 'ours.pth', 'plugin')
    arguments = {**TINY, **FINETUNE, 'arch': dict(TINY['arch'], num_layers=4)}
    inits = [tmp_path / 'hf', tmp_path / 'ours.pth']
    for init in inits:
        backbone = build_part({**arguments, 'init_cfg': dict(type='Pretrained', checkpoint=str(init))}).eval()
        backbone.init_weights()
        with torch.no_grad():
            _, maps = backbone.forward_intermediates(photos('finetune'))
            for ours_, theirs in zip(maps, states[1:], strict=True):
                torch.testing.assert_close(ours_.flatten(2).transpose(1, 2), theirs[:, 1:], rtol=1e-4, atol=1e-4)
            if pooled is not None:
                torch.testing.assert_close(backbone(photos('finetune'))[0], pooled, rtol=1e-4, atol=1e-4)
    cfg = Config(dict(load_from=str(tmp_path / 'hf')))
    train._check_checkpoint(cfg)
    checkpoint = CheckpointLoader.load_checkpoint(cfg.load_from)
    backbone = build_part(arguments)
    fitted = fit_checkpoint(backbone, checkpoint)
    assert fitted.kept[:1] == ['mask_token'] and 'blocks.3.attn.qkv.weight' in fitted.state


def test_a_model_without_class_token_is_refused_and_told_so(tmp_path):
    """An ordinary ViT that averages its tokens, and a BEiT without the token, by `convert` and `init_cfg`."""
    vit = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=4, class_token=False, global_pool='avg'
    )
    save_file(vit.state_dict(), tmp_path / 'vit.pth')
    beit = {name: x for name, x in from_plugin(plugin_state('finetune'), 'timm').state.items() if name != 'cls_token'}
    save_file(beit, tmp_path / 'beit.pth')
    for kind in ('vit', 'beit'):
        with pytest.raises(ValueError, match=r'no class token \(cls_token\)'):
            convert_file(tmp_path / f'{kind}.pth', tmp_path / 'out.pth', 'plugin')
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / f'{kind}.pth'))
        with pytest.raises(ValueError, match=rf'{kind}.pth.*no class token \(cls_token\)'):
            build_part({**TINY, **FINETUNE, 'init_cfg': init_cfg}).init_weights()
