"""Mask units of 16 px; published: 32.

Source:   arXiv 2111.09886, ablation of unit sizes.
Command:  python tools/ablate.py configs/ablations/unit_16.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

mask = dict(mask_patch_size=16)
