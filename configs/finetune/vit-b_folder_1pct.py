"""Fine-tune on your own classes with the labels of 1 % of the training images, at least one of each class.

Source:   vit-b_folder.py with three times the epochs, since each has few images.
Command:  python tools/train.py configs/finetune/vit-b_folder_1pct.py --cfg-options data_root=... load_from=...
"""

_base_ = 'vit-b_folder_10pct.py'

train_dataloader = dict(dataset=dict(fraction=0.01))
