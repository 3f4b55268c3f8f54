"""MaskedBackbone: the maps of a model are its library's own, and what a mask hides is hidden."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from helpers.backbones import BACKBONES, FAST, library_map, library_model, randomise
from helpers.models import assert_close
from helpers.other_projects import photos
from simmim_plugin import MaskedBackbone, SimMIM
from simmim_plugin.models.libraries import refusals
from simmim_plugin.registry import build_part

EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]


def masked(name: str, **kwargs: Any) -> MaskedBackbone:
    torch.manual_seed(0)
    model = MaskedBackbone(**{**BACKBONES[name], **kwargs})
    randomise(model)
    return model


def images_for(model: MaskedBackbone) -> Tensor:
    return photos('any')[..., : model.img_size[0], : model.img_size[1]].contiguous()


@pytest.mark.parametrize('name', EACH)
@torch.no_grad()
def test_maps_are_those_of_the_library(name):
    ours, theirs = masked(name), library_model(name)
    theirs.load_state_dict(ours.model.state_dict())
    images = images_for(ours)
    side = images.shape[2] // ours.patch_size
    expected = library_map(name, theirs, images, side)
    (found,) = ours(images)
    assert found.shape == (2, ours.embed_dims, side, side) == expected.shape
    assert_close(found, expected.numpy(), 1e-6)
    assert (ours(images, torch.zeros(2, side, side))[0] == found).all()
    # All layers at once, and each at the stride and width that it says.
    every = masked(name, out_indices=range(ours.num_layers))
    shapes = [(each.shape[1], images.shape[2] // each.shape[2]) for each in every(images)]
    assert shapes == every.layer_shapes
    assert (every(images)[-1] == found).all()


@pytest.mark.parametrize('kind', ['vit', 'deit', 'ijepa', 'vit_msn'])
@pytest.mark.parametrize('size', [[32, 128], [32, 48], [64, 64]])
@torch.no_grad()
def test_transformers_with_images_that_are_no_squares(kind, size):
    """At their own size, position embeddings are taken as they are; those of squares alone are interpolated."""
    from transformers import AutoConfig, AutoModel

    config: dict[str, Any] = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
    ours = MaskedBackbone(dict(type='transformers', model_type=kind, image_size=size, **config))
    theirs = AutoModel.from_config(AutoConfig.for_model(kind, image_size=size, **config)).eval()
    theirs.load_state_dict(randomise(ours).model.state_dict())
    photo, other = photos('any')[..., :64, :64].repeat(1, 1, 1, 2), photos('any')[..., :48, :64]
    tokens = theirs(photo[..., : size[0], : size[1]]).last_hidden_state
    (found,) = ours(photo[..., : size[0], : size[1]])
    expected = tokens[:, -found[0, 0].numel() :].transpose(1, 2).unflatten(2, found.shape[2:])
    assert_close(found, expected.numpy(), 1e-6)
    if size[0] == size[1]:
        tokens = theirs(other, interpolate_pos_encoding=True).last_hidden_state
        assert_close(ours(other)[0], tokens[:, -12:].transpose(1, 2).unflatten(2, (3, 4)).numpy(), 1e-6)
    else:
        with pytest.raises(ValueError, match=r'images of 48 x 64 px do not fit model.image_size=\[32, '):
            ours(other)


SQUARE = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
OTHERS: dict[str, dict[str, Any]] = {
    'beit': dict(**SQUARE, intermediate_size=96, use_relative_position_bias=True),
    'beit with positions': dict(
        **SQUARE, intermediate_size=96, use_mean_pooling=False, use_absolute_position_embeddings=True
    ),
    'data2vec-vision': dict(**SQUARE, intermediate_size=96),
    'dinov2_with_registers': dict(**SQUARE, mlp_ratio=2),
    'convnextv2': dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
}


@pytest.mark.parametrize('name', OTHERS)
@torch.no_grad()
def test_maps_of_the_other_types_of_transformers(name):
    from transformers import AutoConfig, AutoModel

    kind, config = name.split()[0], OTHERS[name]
    size, place = (32, 'tokens') if 'image_size' in config else (64, 'image')
    ours: Any = MaskedBackbone(dict(type='transformers', model_type=kind, **config), mask_at=place, img_size=size)
    theirs = AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval()
    theirs.load_state_dict(randomise(ours).model.state_dict())
    images, stride = photos('any')[..., :size, :size], ours.patch_size
    expected = theirs(images).last_hidden_state
    side = size // stride
    if expected.ndim == 3:
        expected = expected[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    assert_close(ours(images)[0], expected.numpy(), 1e-6)
    mask = torch.zeros(2, side, side)
    mask[:, 0] = 1
    other = torch.cat((torch.randn_like(images[:, :, :stride]), images[:, :, stride:]), 2)
    assert torch.equal(ours(images, mask)[0], ours(other, mask)[0])  # hidden pixels do not reach the map
    assert not torch.equal(ours(images)[0], ours(other)[0])


@pytest.mark.parametrize('name', ['timm-convnext', 'timm-vit'])
@torch.no_grad()
def test_a_learned_pixel_in_units_of_any_size(name):
    model = masked(name, mask_at='image')
    assert model.mask_token.shape == (1, 3, 1, 1)
    images, mask = images_for(model), torch.zeros(2, 8, 8)  # units of 8 px, smaller than the stride
    mask[0, 0, 1] = mask[1, 7] = 1
    painted = images.clone()
    painted[0, :, :8, 8:16] = painted[1, :, 56:] = model.mask_token[0]
    assert_close(model(images, mask)[0], model(painted)[0].numpy(), 1e-6)
    with pytest.raises(ValueError, match='mask of 7 x 8 does not divide images of 64 x 64 px into squares'):
        model(images, torch.zeros(2, 7, 8))


@pytest.mark.parametrize('name', ['hf-vit', 'hf-dinov2', 'hf-dinov3'])
@torch.no_grad()
def test_mask_tokens_are_where_transformers_puts_them(name):
    """Their own masked models take `bool_masked_pos`."""
    from transformers import ViTModel

    model = masked(name)
    theirs = library_model(name)
    if name == 'hf-vit':
        theirs = ViTModel(theirs.config, use_mask_token=True).eval()
    state = {**model.model.state_dict(), 'embeddings.mask_token': model.mask_token}
    if name == 'hf-dinov2':
        state['embeddings.mask_token'] = model.mask_token[0]
    theirs.load_state_dict(state)
    mask = torch.zeros(2, 4, 4)
    mask[0, 1, 2] = mask[1, :, 3] = 1
    images = images_for(model)
    tokens = theirs(images, bool_masked_pos=mask.flatten(1).bool()).last_hidden_state
    expected = tokens[:, -16:].transpose(1, 2).reshape(2, -1, 4, 4)
    assert_close(model(images, mask)[0], expected.numpy(), 1e-6)
    assert model._hidden is None


@pytest.mark.parametrize('name', ['timm-vit', *(pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES)])
@torch.no_grad()
def test_hidden_pixels_do_not_reach_the_tokens(name):
    """Whatever is under the mask, the maps are the same; and a mask of units as coarse as the stride is enough."""
    model = masked(name)
    images = images_for(model)
    side = images.shape[2] // model.patch_size
    mask = torch.zeros(2, side, side)
    mask[:, 0] = mask[0, 1, 1] = 1
    hidden = mask.repeat_interleave(model.patch_size, 1).repeat_interleave(model.patch_size, 2)[:, None].bool()
    noise = torch.where(hidden, torch.randn_like(images), images)
    assert (model(images, mask)[0] == model(noise, mask)[0]).all()
    assert not torch.equal(model(images)[0], model(noise)[0])
    clone = copy.deepcopy(model)  # as EMA does: its mask token is its own
    clone.mask_token += 1
    assert not torch.equal(clone(images, mask)[0], model(images, mask)[0])
    assert torch.equal(clone(images)[0], model(images)[0])


TINY_VIT = dict(depths=(1,) * 4, embed_dims=(16, 32, 32, 32), num_heads=(1,) * 4, window_sizes=(4,) * 4)


@pytest.mark.parametrize(
    ('config', 'size'),
    [
        (dict(name='tiny_vit_5m_224', **TINY_VIT), 128),  # (B, 16, 32, 32)
        (dict(name='vit_tiny_patch16_224', img_size=64, patch_size=4, embed_dim=16, num_heads=2, depth=1), 64),
        (dict(BACKBONES['timm-swin']['model']), 64),  # (B, 16, 16, 16), the last are channels
        (
            dict(
                name='vit_tiny_patch16_224', img_size=64, patch_size=4, embed_dim=16, num_heads=2, depth=1,
                dynamic_img_size=True,
            ),
            64,
        ),
    ],
)  # fmt: skip
@torch.no_grad()
def test_tokens_are_replaced_in_any_layout(config, size):
    model: Any = randomise(MaskedBackbone({**config, 'type': 'timm'}, mask_at='tokens', img_size=size))
    images = torch.nn.functional.interpolate(photos('any'), size)
    mask = torch.zeros(2, 2, 2)
    mask[:, 0, 0] = 1
    seen: list[Tensor] = []
    model.model.patch_embed.register_forward_hook(lambda module, args, output: seen.append(output))
    model(images, mask)
    model(images)
    hidden, visible = seen
    if hidden.ndim == 3:
        hidden, visible = (each.unflatten(1, (16, 16)) for each in seen)
    elif config['name'].startswith('tiny'):
        hidden, visible = (each.permute(0, 2, 3, 1) for each in seen)
    half = hidden.shape[1] // 2
    assert (hidden[:, :half, :half] == model.mask_token.flatten()).all()
    assert torch.equal(hidden[:, half:], visible[:, half:]) and torch.equal(hidden[:, :, half:], visible[:, :, half:])


def test_a_map_whose_channels_cannot_be_told():
    model = MaskedBackbone(dict(type='timm', name='tiny_vit_5m_224', **TINY_VIT), mask_at='tokens', img_size=64)
    images = photos('any')[..., :64, :64]
    model(images)
    with pytest.raises(ValueError, match=r'gives \(2, 16, 16, 16\), of which dimension 1 or 3 may be the 16 channels'):
        model(images, torch.zeros(2, 2, 2))


def test_a_mask_of_another_grid_than_the_tokens():
    model = masked('timm-vit')
    with pytest.raises(ValueError, match=r'\(2, 8, 8\) does not fit 4 x 4 tokens; set model_patch_size=16 in SimMIM'):
        model(images_for(model), torch.zeros(2, 8, 8))
    assert model._hidden is None
    with pytest.raises(ValueError, match=r'no patch embedding found in convnext_tiny; use mask_at=.image'):
        masked('timm-convnext', mask_at='tokens')


@pytest.mark.parametrize('name', EACH)
def test_pretraining_moves_every_parameter(name):
    torch.manual_seed(0)
    model = SimMIM(backbone=dict(type='MaskedBackbone', **BACKBONES[name])).train()
    images = images_for(model.backbone)
    assert model.head.patch_size == model.backbone.patch_size
    side = images.shape[2] // model.backbone.patch_size
    mask = torch.zeros(2, side, side)
    mask[:, ::2] = 1
    losses = []
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    for _ in range(4):
        losses.append(model(images, mask, mode='loss')['loss'])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        assert [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None] == []
    assert losses[-1] < losses[0]
    model.zero_grad()
    model.backbone(images)[0].sum().backward()  # DistributedDataParallel waits for the mask token, too
    assert model.backbone.mask_token.grad is not None


@pytest.mark.parametrize('name', FAST)
@torch.no_grad()
def test_one_graph_with_and_without_a_mask(name):
    model = masked(name)
    images = images_for(model)
    side = images.shape[2] // model.patch_size
    mask = torch.zeros(2, side, side)
    mask[:, 0] = 1
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert_close(compiled(images, mask)[0], model(images, mask)[0].numpy(), 1e-6)
    assert_close(compiled(images)[0], model(images)[0].numpy(), 1e-6)


@pytest.mark.parametrize('name', ['timm-convnext', 'timm-vit', 'timm-resnet', 'timm-eva02'])
def test_layer_decay_is_that_of_timm(name):
    """The rates of timm for the whole model, its classifier included, by name."""
    model = masked(name)
    config = dict(BACKBONES[name]['model'])
    whole = timm.create_model(config.pop('name'), num_classes=5, **{k: v for k, v in config.items() if k != 'type'})
    named = {id(each): name for name, each in whole.named_parameters()}
    scales = {
        named[id(each)]: group['lr_scale']
        for group in param_groups_layer_decay(whole, layer_decay=0.5)
        for each in group['params']
    }
    _, count = model.get_layer_depth('')
    for parameter, _ in model.model.named_parameters():
        depth, _ = model.get_layer_depth(f'backbone.model.{parameter}', 'backbone.')
        if parameter in scales and f'model.{parameter}' not in model.unused:
            assert 0.5 ** (count - 1 - depth) == scales[parameter], parameter
    classifier = next(name for name in scales if name.startswith(('head.fc.w', 'fc.w', 'head.w')))
    assert scales[classifier] == 1 and model.get_layer_depth('head.fc.weight', 'backbone.')[0] == count - 1
    assert model.get_layer_depth('backbone.mask_token', 'backbone.')[0] == 0


def test_layers_of_transformers_and_models_without():
    model = masked('hf-vit')
    depth = {name: model.get_layer_depth(f'model.{name}')[0] for name, _ in model.model.named_parameters()}
    assert depth['embeddings.cls_token'] == depth['embeddings.patch_embeddings.projection.weight'] == 0
    assert depth['encoder.layer.1.layernorm_before.weight'] == 2
    assert depth['layernorm.weight'] == 3 == model.get_layer_depth('')[1] - 1
    with pytest.raises(ValueError, match='layer decay: ConvNextModel does not say what its layers are'):
        masked('hf-convnext').get_layer_depth('')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='timm', name='no_such_model'), "model.name='no_such_model' is no model of timm"),
        (dict(type='timm', name='hf-hub:someone/model'), "model.name='hf-hub:someone/model' is no model of timm"),
        (dict(type='timm', name='resnet18', checkpoint_path='a.pth'), 'model.checkpoint_path is not taken here: give'),
        (dict(type='timm', name='resnet18', pretrained_cfg=dict(file='a')), 'model.pretrained_cfg is not taken here'),
        (dict(type='timm', name='resnet18', features_only=True), 'choose some by out_indices of MaskedBackbone'),
        (dict(type='transformers', model_type='bert'), "model.model_type='bert' is unknown; choose one of 'beit'"),
        (dict(type='transformers', model_type='vit', auto_map={}), "an argument of model='auto_map' is unknown"),
        (dict(type='transformers', model_type='vit', num_hidden_layers=10**9), 'num_hidden_layers=1000000000 must be'),
        (dict(type='timm', name='vit_tiny_patch16_224', embed_dim=10**9), 'embed_dim=1000000000 must be at most'),
        (dict(name='resnet18'), "must be a dict with a 'type'"),
        (
            dict(type='timm', name='pit_ti_224'),
            r'^model=.*pit_ti_224.*: it gives no maps of images of 224 x 224 px \(Run',
        ),
        (dict(type='timm', name='crossvit_tiny_240'), r'gives no maps of images of 240 x 240 px \(AttributeError'),
        (
            dict(type='timm', name='vit_tiny_patch16_224.nope'),
            r'timm refuses it \(RuntimeError: Invalid pretrained tag',
        ),
        (
            dict(type='transformers', model_type='vit', hidden_act='foo'),
            r"Transformers refuses it \(KeyError: 'foo'\)$",
        ),
        (
            dict(type='transformers', model_type='vit', patch_size=[16, 16]),
            r'patch_size=\[16, 16\] must be a whole num',
        ),
        (dict(type='transformers', model_type='dinov2', image_size=[28, 42]), r'no maps of images of 28 x 42 px'),
        (dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=32), "set its out_type to 'featmap'"),
    ],
)
def test_what_is_not_taken(config, message):
    with pytest.raises(ValueError, match=message):
        build_part(dict(type='MaskedBackbone', model=config))


@pytest.mark.parametrize(
    'config',
    [
        dict(type='timm', name='resnet18.a1_in1k', pretrained=True),
        dict(type='transformers', model_type='vit', pretrained='google/vit-base-patch16-224'),
    ],
)
def test_weights_without_a_network(config, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(
        ValueError, match=r'cannot be downloaded here \(.*; where there is no network, leave it out and'
    ):
        build_part(dict(type='MaskedBackbone', model=config))


SMALL: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)


@torch.no_grad()
def test_pretrained_weights_of_transformers_are_all_loaded(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

    config = dict(type='transformers', model_type='vit', **SMALL, layer_norm_eps=1e-3, pretrained=str(tmp_path))
    images = photos('any')[..., :32, :32]
    for theirs in (
        ViTForImageClassification(ViTConfig(**SMALL, layer_norm_eps=1e-3)),
        ViTMAEForPreTraining(ViTMAEConfig(**SMALL, layer_norm_eps=1e-3, mask_ratio=0.0)),
    ):
        randomise(theirs).save_pretrained(tmp_path)
        whole = ViTModel(ViTConfig(**SMALL, layer_norm_eps=1e-3)).eval()
        whole.load_state_dict(theirs.vit.state_dict(), strict=False)  # the same encoder
        expected = whole(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        assert_close(MaskedBackbone(config).eval()(images)[0], expected.numpy(), 1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(num_hidden_layers=4),
            r'has the weights of another model; not in the checkpoint: encoder.layer.2.\S+, .* \d+ more. Give',
        ),
        (
            dict(num_hidden_layers=1),
            r'has the weights of another model; not in the model: encoder.layer.1.\S+, .* and \d+ more. Give',
        ),
        (
            dict(intermediate_size=128),
            r'has the weights of another model; of another shape: encoder.layer.0.intermediate.dense.bias',
        ),
        (dict(num_attention_heads=2), 'has num_attention_heads=4, and model 2: give model num_attention_heads=4'),
        (dict(hidden_act='relu'), "has hidden_act='gelu', and model 'relu': give model hidden_act='gelu'"),
        (dict(layer_norm_eps=1e-6), 'has layer_norm_eps=0.001, and model 1e-06: give model layer_norm_eps=0.001'),
        (dict(model_type='deit'), 'has the weights of another model; not in the checkpoint: embeddings.distillation_'),
    ],
)
def test_pretrained_weights_of_another_model_of_transformers(changes, message, tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SMALL, layer_norm_eps=1e-3)).save_pretrained(tmp_path)
    config = dict(type='transformers', model_type='vit', **SMALL, layer_norm_eps=1e-3, pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=f"^model.pretrained='{tmp_path}' {message}"):
        MaskedBackbone({**config, **changes})


def test_weights_that_do_not_fit_are_no_failed_download():
    with (
        pytest.raises(ValueError, match=r'^model={}: timm refuses it \(RuntimeError: .* size mismatch for weight: '),
        refusals({}, 'timm refuses it', 'resnet18', True),
    ):
        torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(3, 2).state_dict())
