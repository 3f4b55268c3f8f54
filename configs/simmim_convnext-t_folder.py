"""ConvNeXt-T of timm on your own folder of photos: set `data_root`. More on such models: docs/backbones.md.

Source:   the recipe of configs/simmim_vit-b_folder.py; masked in the image, in units of the stride, 32 px. Not tuned.
Command:  python tools/train.py configs/simmim_convnext-t_folder.py --cfg-options data_root=/path/to/images
"""

_base_ = 'simmim_vit-b_folder.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MaskedBackbone',
        model=dict(type='timm', name='convnext_tiny', drop_path_rate=0.1),
        img_size=224,
    )
)
mask = dict(mask_patch_size=32, model_patch_size=32)
