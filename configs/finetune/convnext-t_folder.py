"""Fine-tune the ConvNeXt-T of configs/simmim_convnext-t_folder.py on your own classes: set `data_root` and `load_from`.

`data_root` has the folders train/ and val/, each with a folder per class.

Source:   the recipe of vit-b_folder.py; layers are those of timm. Not tuned.
Command:  python tools/train.py configs/finetune/convnext-t_folder.py --cfg-options data_root=/path/to/data \
              load_from=work_dirs/simmim_convnext-t_folder/epoch_800.pth
"""

_base_ = 'vit-b_folder.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='simmim_plugin.MaskedBackbone',
        model=dict(type='timm', name='convnext_tiny', drop_path_rate=0.1),
        img_size=224,
    ),
    neck=dict(type='GlobalAveragePooling'),
)
