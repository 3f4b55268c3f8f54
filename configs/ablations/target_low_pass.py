"""Pixels of the image without high frequencies.

Source:   arXiv 2303.02416 (PixMIM): radius 40 at 224 px.
Command:  python tools/ablate.py configs/ablations/target_low_pass.py --data-root /path/to/data
Expected: not measured yet.
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(target=dict(type='low_pass', radius=40)))
