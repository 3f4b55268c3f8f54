"""ViT-B/16 on your own folder of photos: set `data_root`, here or by --cfg-options data_root=/path/to/images.

Source:   configs/simmim_vit-b.py, unchanged.
Command:  python tools/train.py configs/simmim_vit-b_folder.py --cfg-options data_root=/path/to/images
"""

_base_ = 'simmim_vit-b.py'

data_root = 'data/images'
val_root = None  # a folder of other images: their loss after every epoch shows overfitting
