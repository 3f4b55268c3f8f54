"""Images other than RGB photos: N channels (.npy, .tif), 16 bit; here five channels, values as stored.

Set `data_root`, and copy channels, mean and std from the output of
  python tools/compute_mean_std.py DATA_ROOT --channels 5 --dtype float32
For one grey channel of 16 bit (X-ray, microscopy) set channels=1, in_channels=1, and its mean and std.

Source:   configs/simmim_vit-b_folder.py; the recipe is that of photos.
Command:  python tools/train.py configs/simmim_vit-b_multichannel.py --cfg-options data_root=/path/to/scenes
Expected: at a small size, tests/end_to_end/test_train.py trains one.
"""

_base_ = 'simmim_vit-b_folder.py'

model = dict(
    data_preprocessor=dict(mean=[1000.0] * 5, std=[500.0] * 5),
    backbone=dict(in_channels=5),
)
load = dict(_delete_=True, type='LoadImage', channels=5, dtype='float32')
