"""Single tokens at ratio 0.75, as in MAE.

Source:   arXiv 2111.06377 (MAE).
Command:  python tools/ablate.py configs/ablations/mask_random_tokens.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

mask = dict(_delete_=True, **_base_.masks.random_tokens)
