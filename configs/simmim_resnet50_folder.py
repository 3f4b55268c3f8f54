"""ResNet-50 of timm on your own folder of photos: set `data_root`. More on such models: docs/backbones.md.

Source:   the recipe of configs/simmim_vit-b_folder.py; masked in the image, in units of the stride, 32 px. Not tuned.
Command:  python tools/train.py configs/simmim_resnet50_folder.py --cfg-options data_root=/path/to/images
"""

_base_ = 'simmim_convnext-t_folder.py'

model = dict(backbone=dict(model=dict(_delete_=True, type='timm', name='resnet50')))
