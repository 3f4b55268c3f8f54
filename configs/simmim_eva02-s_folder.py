"""EVA-02 S/14 of timm, with rotary position embedding, on your own folder of photos: set `data_root`.

More on such models: docs/backbones.md.

Source:   the recipe of configs/simmim_vit-b_folder.py; the mask is at the tokens, in units of 28 px. Not tuned.
Command:  python tools/train.py configs/simmim_eva02-s_folder.py --cfg-options data_root=/path/to/images
"""

_base_ = 'simmim_convnext-t_folder.py'

model = dict(
    backbone=dict(
        model=dict(_delete_=True, type='timm', name='eva02_small_patch14_224', drop_path_rate=0.1), mask_at='tokens'
    )
)
mask = dict(mask_patch_size=28, model_patch_size=14)
