"""L1 on patches normalised by their own mean and standard deviation, as in MAE.

Source:   arXiv 2111.06377 (MAE).
Command:  python tools/ablate.py configs/ablations/loss_normalized_target.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(normalize_target=True))
