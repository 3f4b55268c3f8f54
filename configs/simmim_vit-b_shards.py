"""The published recipe on images in tar files (WebDataset layout): set `data_root` to their folder.

For clusters whose file systems are slow with many small files. `tools/prepare_dataset.py IMAGES SMALL --shards-mb 256`
writes them to SMALL/shards.

Source:   configs/simmim_vit-b_folder.py.
Command:  tools/dist_train.sh configs/simmim_vit-b_shards.py 8 --cfg-options data_root=/path/to/small/shards
"""

_base_ = 'simmim_vit-b_folder.py'

train_dataloader = dict(dataset=dict(type='TarShards'))
