"""Histograms of oriented gradients in place of pixels, squared error.

Source:   arXiv 2112.09133 (MaskFeat): 9 bins, cells of half a patch, each channel.
Command:  python tools/ablate.py configs/ablations/target_hog.py --data-root /path/to/data
Expected: not measured yet.
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(target='hog', loss=dict(criterion='l2')))
