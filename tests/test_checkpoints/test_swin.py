"""Swin's checkpoints of other projects: their own models give the numbers of ours, and ours theirs."""

import copy
import re

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from helpers.models import assert_close
from helpers.other_projects import assert_same, mmpretrain_model, photos, randomise
from helpers.swin import ARCH, HEAD, PRETRAIN
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file, tensors_of
from simmim_plugin.checkpoints.loading import build_backbone, fit_checkpoint, load_pretrained
from simmim_plugin.checkpoints.noted_config import buildable
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.checkpoints.swin import from_ours, kind_of, to_ours
from simmim_plugin.checkpoints.swin_files import backbone_config, facts_of, mmpretrain_config, timm_arguments
from simmim_plugin.registry import MODELS

pytest.importorskip('mmpretrain')
pytestmark = pytest.mark.core
SIDE = 48
CLASSES = 5


def pretrained() -> SimMIM:
    return randomise(SimMIM(copy.deepcopy(PRETRAIN), dict(HEAD)))


def ours(state) -> SimMIM:
    model = SimMIM(copy.deepcopy(PRETRAIN), dict(HEAD)).eval()
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    return model


def weights(model):
    return to_ours(model.state_dict())[0]


def images(side=SIDE):
    return torch.nn.functional.interpolate(photos('pretrain'), side, mode='bilinear', antialias=True)


def mask():
    return torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.6


def test_timm_gives_the_same_numbers_both_ways():
    theirs = randomise(SwinTransformer(**timm_arguments(facts_of(weights(pretrained()), (SIDE, SIDE)))))
    for state in (theirs.state_dict(), randomise(timm.create_model('swin_tiny_patch4_window7_224')).state_dict()):
        assert kind_of(state) == 'timm'
        converted, left_out = to_ours(state)
        assert not left_out
        back, lost = from_ours(converted, 'timm')
        assert not lost
        assert_same(back, {name: state[name] for name in back})
        assert back.keys() == state.keys()
    model = ours(to_ours(theirs.state_dict())[0])
    with torch.no_grad():
        assert_close(model(images())[0], theirs.forward_features(images()).permute(0, 3, 1, 2).numpy())
        state, left_out = from_ours(weights(pretrained()), 'timm')
        assert sorted(left_out) == ['backbone.mask_token', 'head.decoder.bias', 'head.decoder.weight']
        theirs.load_state_dict(state)  # strict
        assert_close(pretrained()(images())[0], theirs.forward_features(images()).permute(0, 3, 1, 2).numpy())


def test_transformers_gives_the_same_reconstruction_both_ways(tmp_path):
    transformers = pytest.importorskip('transformers')
    model = pretrained()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'ours.pth')
    report = convert_file(tmp_path / 'ours.pth', tmp_path / 'hf', 'hf')
    assert report.kind == 'plugin' and not report.left_out
    theirs, info = transformers.SwinForMaskedImageModeling.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not any(info.values()), info

    def compare(mine):
        with torch.no_grad():
            found = theirs(images(), bool_masked_pos=mask().flatten(1)).reconstruction
            assert_close(mine.reconstruct(images(), mask()), found.numpy())

    compare(model)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / 'theirs')
    report = convert_file(tmp_path / 'theirs', tmp_path / 'back.pth', 'plugin')
    assert report.kind == 'hf' and not report.left_out
    back, _ = load_pretrained(tmp_path / 'back.pth')
    compare(back)


def test_mmpretrains_own_simmim_gives_the_same_loss_both_ways():
    from mmpretrain.structures import DataSample

    model = pretrained()
    theirs = mmpretrain_model(mmpretrain_config(facts_of(weights(model), (SIDE, SIDE)))).eval()
    state, left_out = from_ours(weights(model), 'mmpretrain')
    assert not left_out
    theirs.load_state_dict(state)  # strict, with buffers

    def compare(mine):
        samples = [DataSample() for _ in range(2)]
        for sample, each in zip(samples, mask()):
            sample.set_field(each, 'mask', field_type='metainfo')
        loss = theirs.loss(images(), samples)['loss']
        assert_close(mine.loss(images(), mask())['loss'], loss.item())

    compare(model)
    randomise(theirs)
    assert kind_of(theirs.state_dict()) == 'mmpretrain'
    converted, left_out = to_ours(theirs.state_dict())
    assert not left_out
    compare(ours(converted))


def test_mmdetections_swin_gives_the_same_maps():
    pytest.importorskip('mmcv.ops', reason="MMCV's operators are not installed", exc_type=ImportError)
    from mmdet.models.backbones import SwinTransformer as Detection

    model = pretrained()
    theirs = Detection(
        pretrain_img_size=SIDE,
        embed_dims=4,
        depths=ARCH['depths'],
        num_heads=ARCH['num_heads'],
        strides=(4, 2, 2),
        window_size=3,
        out_indices=(0, 1, 2),
    )
    theirs.eval()  # returns None
    fitted = fit_checkpoint(theirs, {'state_dict': model.state_dict()})
    assert fitted is not None and sorted(fitted.kept) == [f'norm{i}.{x}' for i in (0, 1) for x in ('bias', 'weight')]
    missing, unexpected = theirs.load_state_dict(from_ours(weights(model), 'backbone')[0], strict=False)
    assert not [name for name in missing if name not in fitted.kept]
    assert sorted(unexpected) == ['mask_token']
    with torch.no_grad():
        # It also shifts the windows of a map that is one window, as the last of 48 px would be.
        assert_close(theirs(images(96))[-1], model(images(96))[0].numpy())


def test_the_official_names_round_trip_and_a_stage_may_have_smaller_windows():
    model = pretrained()
    state, left_out = from_ours(weights(model), 'official')
    assert not left_out and kind_of(state) == 'official'
    assert 'encoder.layers.0.downsample.reduction.weight' in state and state['decoder.0.weight'].shape[2:] == (1, 1)
    back, left_out = to_ours(state)
    assert not left_out
    assert_same(back, weights(model))
    # The reference shrinks a window of 12 to the last map of a 192 px image, 6 x 6: so are the tables of Swin-L.
    table = 'backbone.stages.2.blocks.{}.attn.w_msa.relative_position_bias_table'
    small = {table.format(i): torch.zeros(9, 4) for i in range(2)}
    facts = facts_of({**weights(model), **small})
    assert facts.windows == [3, 3, 2] and facts.img_size == (32, 32)
    built = SimMIM(backbone_config(facts, True), dict(HEAD)).backbone
    assert built.stages[2].blocks[1].attn.w_msa.window_size == (2, 2)


@pytest.mark.parametrize('to', ['plugin', 'official', 'mmpretrain', 'hf'])
def test_a_file_goes_there_and_back_bit_for_bit(tmp_path, to):
    model = pretrained()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'ours.pth')
    there = tmp_path / ('there' if to == 'hf' else 'there.pth')
    convert_file(tmp_path / 'ours.pth', there, to, img_size=(SIDE, SIDE))
    report = convert_file(there, tmp_path / 'back.safetensors', 'plugin', img_size=None if to == 'hf' else (SIDE, SIDE))
    assert not report.left_out and not report.notes
    content = load_file(tmp_path / 'back.safetensors')
    assert_same({k: v for k, v in tensors_of(content).items() if 'index' not in k}, weights(model))
    back, pipeline = load_pretrained(tmp_path / 'back.safetensors')
    with torch.no_grad():
        assert torch.equal(back.reconstruct(images(), mask()), model.reconstruct(images(), mask()))
    masking = next(each for each in pipeline if each['type'].endswith('MaskGenerator'))
    assert (masking['model_patch_size'], masking['mask_patch_size']) == (4, 16)


def test_load_from_takes_timms_and_names_what_does_not_fit():
    source = randomise(SwinTransformer(**timm_arguments(facts_of(weights(pretrained()), (SIDE, SIDE)))))
    config = backbone_config(facts_of(weights(pretrained()), (64, 64)), False)
    del config['stage_cfgs']
    model = mmpretrain_model({**config, 'window_size': 4})
    checkpoint = {'state_dict': source.state_dict()}
    fitted = fit_checkpoint(model, checkpoint)
    assert fitted is not None and len(fitted.resized) == 6 and not fitted.kept and not fitted.skipped
    model.load_state_dict(checkpoint['state_dict'])  # strict
    deeper = mmpretrain_model({**config, 'window_size': 3, 'arch': {**ARCH, 'depths': [2, 4, 2]}})
    with pytest.raises(ValueError, match=r'Swin: not in the checkpoint: stages.1.blocks.2.\S+, .* and 21 more; set'):
        fit_checkpoint(deeper, {'state_dict': source.state_dict()})
    wider = mmpretrain_model({**config, 'window_size': 3, 'arch': {**ARCH, 'embed_dims': 8}})
    with pytest.raises(ValueError, match=r'another Swin: of another shape: .*\) instead of \(.* and \d+ more; set'):
        fit_checkpoint(wider, {'state_dict': source.state_dict()})
    with pytest.raises(ValueError, match=r'has a Swin Transformer, the checkpoint a\.weight: another model'):
        fit_checkpoint(model, {'state_dict': {'a.weight': torch.zeros(1)}})


def test_load_from_takes_the_other_parts_of_a_detector_and_the_decoder_of_mmpretrain():
    class Detector(torch.nn.Module):
        def __init__(self, anchors: int = 3) -> None:
            super().__init__()
            self.backbone = MODELS.build(backbone_config(facts_of(weights(pretrained()), (SIDE, SIDE)), False))
            self.neck, self.rpn_head = torch.nn.Linear(16, 8), torch.nn.Conv2d(8, anchors, 1)

    theirs = mmpretrain_config(facts_of(weights(pretrained()), (SIDE, SIDE)))
    for model in (Detector(), mmpretrain_model(theirs)):
        state = {name: value.clone() for name, value in randomise(model).state_dict().items()}
        checkpoint = {'state_dict': dict(state)}
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        fitted = fit_checkpoint(model, checkpoint)
        assert fitted is not None and not fitted.skipped and not fitted.kept
        assert_same(checkpoint['state_dict'], state)
    state = dict(randomise(Detector()).state_dict())
    fitted = fit_checkpoint(Detector(anchors=6), {'state_dict': {**state, 'extra.weight': torch.zeros(1)}})
    assert fitted is not None and fitted.kept == ['rpn_head.weight', 'rpn_head.bias']
    shapes = ['rpn_head.weight of shape (3, 8, 1, 1)', 'rpn_head.bias of shape (3,)']
    assert fitted.skipped == ['extra.weight', *shapes]


@pytest.mark.parametrize('kind', ['official', 'timm', 'hf', 'plugin'])
def test_what_is_left_over_or_missing_is_named(kind):
    state, _ = from_ours(weights(pretrained()), kind)
    lost = next(name for name in state if 'blocks.1.' in name and name.endswith('bias'))
    with pytest.raises(ValueError, match=r'names of a Swin Transformer, but it lacks .*bias'):
        to_ours({name: value for name, value in state.items() if name != lost})
    extra = lost.replace('bias', 'logit_scale')
    with pytest.raises(ValueError, match=r'but it has .*logit_scale: another model, such as Swin V2'):
        to_ours({**state, extra: torch.zeros(1)})


@pytest.mark.parametrize('kind', ['official', 'timm', 'hf', 'plugin'])
def test_none_of_several_copies_is_taken_by_chance(kind):
    state, _ = from_ours(weights(pretrained()), kind)
    both = {f'{prefix}.{name}': value for prefix in ('teacher', 'student') for name, value in state.items()}
    with pytest.raises(ValueError, match=r"weights of a Swin Transformer 2 times, with the prefixes 'teacher\."):
        to_ours(both)


def test_swin_v2_is_refused():
    model = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4
    )
    with pytest.raises(ValueError, match=r'it has .*(logit_scale|q_bias|cpb_mlp).* Swin V2'):
        to_ours(model.state_dict())


def test_a_model_with_a_swin_v2_of_mmpretrain_is_left_alone():
    arch = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2], extra_norm_every_n_blocks=0)
    backbone = dict(type='SwinTransformerV2', arch=arch, img_size=32, window_size=[4, 4], out_indices=(1,))
    model = mmpretrain_model(dict(type='ImageClassifier', backbone=backbone))
    checkpoint = {'state_dict': dict(randomise(model).state_dict())}
    assert kind_of(checkpoint['state_dict']) and fit_checkpoint(model, checkpoint) is None
    assert_same(checkpoint['state_dict'], model.state_dict())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(patch_cfg=dict(conv_type='os.system')),
            r"model.backbone.patch_cfg.conv_type='os.system', a name, of which",
        ),
        (dict(arch=dict(ARCH, depths=[2, 10**9, 2])), r'depths=\[2, 1000000000, 2\], the weights \[2, 2, 2\]'),
        (dict(norm_cfg=dict(type='os.system')), r"norm_cfg.type='os.system', which is not built from a file"),
        (dict(arch=dict(ARCH, embed_dims=4_000_000)), 'another architecture'),
    ],
)
def test_a_strangers_config_builds_nothing_unexpected(tmp_path, change, message):
    model = dict(type='SimMIM', backbone={**PRETRAIN, **change}, head=HEAD)
    note = dict(model=model, pipeline=[])
    torch.save({'state_dict': pretrained().state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=re.escape('a.pth') + f'.*{message}'):
        load_pretrained(tmp_path / 'a.pth')


def test_a_classifier_gives_the_same_logits_everywhere(tmp_path):
    transformers = pytest.importorskip('transformers')
    facts = facts_of(weights(pretrained()), (SIDE, SIDE))._replace(classes=CLASSES, decodes=False)
    model = randomise(mmpretrain_model(mmpretrain_config(facts)))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'fine.pth')
    with torch.no_grad():
        expected = model(images()).numpy()
    for to in ('timm', 'official', 'mmpretrain'):
        assert not convert_file(tmp_path / 'fine.pth', tmp_path / f'{to}.pth', to, img_size=(SIDE, SIDE)).left_out
    assert not convert_file(tmp_path / 'fine.pth', tmp_path / 'hf', 'hf', img_size=(SIDE, SIDE)).left_out
    theirs = SwinTransformer(**timm_arguments(facts)).eval()
    theirs.load_state_dict(load_file(tmp_path / 'timm.pth'))
    hf, info = transformers.SwinForImageClassification.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert_close(theirs(images()), expected)
        assert_close(hf(images()).logits, expected)
    # Copies: the tensors of `load_file` stay in the file, which is written again.
    official = {name: value.clone() for name, value in load_file(tmp_path / 'official.pth')['model'].items()}
    assert official['head.weight'].shape == (CLASSES, 16) and 'layers.0.blocks.0.attn.qkv.weight' in official
    official['layers.0.blocks.1.attn_mask'] = torch.zeros(16, 9, 9)  # a buffer there
    torch.save({'model': official}, tmp_path / 'buffers.pth')
    for source, kind in dict(timm='timm', buffers='official', mmpretrain='plugin', hf='hf').items():
        path = tmp_path / (source if kind == 'hf' else f'{source}.pth')
        report = convert_file(path, tmp_path / 'back.safetensors', 'plugin')
        assert report.kind == kind and not report.left_out
        content = load_file(tmp_path / 'back.safetensors')
        assert_same(to_ours(tensors_of(content))[0], to_ours(model.state_dict())[0])


@pytest.mark.parametrize('finetuned', [False, True])
def test_features_of_a_swin_are_those_of_its_backbone(tmp_path, finetuned):
    """Features and probes build it inside a MaskedBackbone."""
    if finetuned:
        facts = facts_of(weights(pretrained()), (SIDE, SIDE))._replace(classes=CLASSES, decodes=False)
        config = mmpretrain_config(facts)
        model = randomise(mmpretrain_model(config))
    else:
        config = dict(type='simmim_plugin.SimMIM', backbone=PRETRAIN, head=HEAD)
        model = pretrained()
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': dict(model=config)}, tmp_path / 'a.pth')
    backbone = build_backbone(read(tmp_path / 'a.pth'))
    assert (backbone.embed_dims, backbone.patch_size, backbone.img_size) == (16, 16, (SIDE, SIDE))
    with torch.no_grad():
        (expected,) = model.backbone(images()) if finetuned else model.backbone(images(), None)
        assert_close(backbone(images())[0], expected.numpy())
        if not finetuned:
            assert_close(backbone(images(), mask())[0], model.backbone(images(), mask())[0].numpy())


def test_load_from_resizes_a_position_embedding_of_a_square():
    config = {**backbone_config(facts_of(weights(pretrained()), (SIDE, SIDE)), False), 'use_abs_pos_embed': True}
    state = MODELS.build(config).state_dict()
    with pytest.raises(ValueError, match=r'absolute_pos_embed has 288 rows, which no square'):
        fit_checkpoint(MODELS.build({**config, 'img_size': (SIDE, 96)}), {'state_dict': dict(state)})
    fitted = fit_checkpoint(MODELS.build({**config, 'img_size': 96}), {'state_dict': dict(state)})
    assert fitted is not None and fitted.resized == ['absolute_pos_embed 12x12 -> 24x24']


def test_no_name_inside_the_arguments_of_a_wrapped_swin_is_built():
    inner = dict(type='mmpretrain.SwinTransformer', arch=ARCH, stage_cfgs=[dict(block_cfgs=dict(window_size=3))] * 3)
    config = dict(type='MaskedBackbone', model=inner)
    assert buildable(config, 'model.backbone', MODELS) == config
    inner['patch_cfg'] = dict(conv_type='os.system', norm_cfg=dict(type='LN'))
    with pytest.raises(
        ValueError, match=r"model\.backbone\.model\.patch_cfg\.conv_type='os\.system', a name, of which"
    ):
        buildable(config, 'model.backbone', MODELS)
