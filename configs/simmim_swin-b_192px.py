"""SimMIM Swin-B, ImageNet-1k, 192 px, windows of 6, 800 epochs: the published recipe.

Masks are over the patches of 4 px that Swin embeds, in units of 32 px; the features have stride 32.

Source:   arXiv 2111.09886 and its reference implementation (Swin-B).
Command:  tools/dist_train.sh configs/simmim_swin-b_192px.py 8          (8 x 256 = total batch 2048)
Expected: 84.0 % top-1 after fine-tuning at 224 px (published); not run here.
"""

_base_ = 'simmim_vit-b.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SimMIMSwinTransformer',
        arch=dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),  # Swin-B
        img_size=192,
        drop_path_rate=0.0,
        stage_cfgs=dict(block_cfgs=dict(window_size=6)),
    ),
    head=dict(in_channels=1024, patch_size=32, out_channels=3),  # width and stride of the features
)
masks = dict(  # the named masks for 4 px patches at 192 px
    simmim=dict(model_patch_size=4),
    simultaneous=dict(model_patch_size=4),
    random_tokens=dict(model_patch_size=4),
    blockwise=dict(input_size=48, num_masking_patches=882, min_num_patches=188),
)
crop = dict(size=192)
mask = masks['simmim']
# The reference does not decay Swin's mask token (it decays the ViT's), nor the bias tables in fine-tuning.
optim_wrapper = dict(paramwise_cfg=dict(no_decay=['mask_token']))
