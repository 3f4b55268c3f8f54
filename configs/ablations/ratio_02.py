"""Mask ratio 0.2; published: 0.6.

Source:   arXiv 2111.09886, ablation of mask ratios.
Command:  python tools/ablate.py configs/ablations/ratio_02.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

mask = dict(mask_ratio=0.2)
