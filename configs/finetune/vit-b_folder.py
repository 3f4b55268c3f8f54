"""Fine-tune ViT-B/16 on your own classes: set `data_root`, with train/ and val/, each with a folder per class.

Source:   the recipe of vit-b_in1k.py; the classes are the folders.
Command:  python tools/train.py configs/finetune/vit-b_folder.py \
              --cfg-options data_root=/path/to/data load_from=work_dirs/simmim_vit-b_folder/epoch_800.pth
Expected: at a small size, see configs/finetune/vit-tiny_folder.py.
"""

_base_ = 'vit-b_in1k.py'

data_root = None

model = dict(data_preprocessor=dict(num_classes=None), head=dict(num_classes=None))  # the number of folders
photos = dict(
    _delete_=True,
    type='simmim_plugin.ClassFolders',
    data_root=None,
    metainfo=None,  # the names of the folders
    extensions=('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.ppm', '.pgm', '.tif', '.tiff'),
)
train_dataloader = dict(batch_size=128, dataset=dict(data_prefix='train', pipeline=_base_.train_pipeline, **photos))
val_dataloader = dict(dataset=dict(data_prefix='val', pipeline=_base_.test_pipeline, **photos))
test_dataloader = val_dataloader
