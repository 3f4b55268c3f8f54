"""Mask R-CNN with a Swin-B on COCO: boxes and masks.

`load_from` is a checkpoint of configs/simmim_swin-b_192px.py, or another project's (docs/backbones.md); its bias tables
are resized to the windows.

Source:   the recipe of mask-rcnn_vit-b_coco.py with Swin's own pyramid; no published result for it.
Command:  tools/dist_train.sh configs/detection/mask-rcnn_swin-b_coco.py 8 --cfg-options data_root=/path/to/coco \
              load_from=work_dirs/simmim_swin-b_192px/epoch_800.pth
"""

_base_ = 'mask-rcnn_vit-b_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),  # Swin-B
        window_size=7,
        drop_path_rate=0.1,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
    ),
    neck=dict(_delete_=True, type='FPN', in_channels=[128, 256, 512, 1024], out_channels=256, num_outs=5),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8, no_decay=['relative_position_bias_table']))
