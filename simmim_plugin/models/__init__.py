"""SimMIM in five files: simmim.py (what is predicted), masks.py (what is hidden), head.py, losses.py, vit.py.

One convention throughout: a mask is (B, h, w) over the patches, 1 = masked.
"""
