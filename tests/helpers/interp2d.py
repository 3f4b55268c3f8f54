"""The function that MMPretrain and timm call, which SciPy has removed, by the replacement that SciPy documents."""

from typing import Any

import pytest
from scipy import interpolate
from timm.layers import pos_embed_rel


def restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `scipy.interpolate.interp2d` back, and let timm use it."""

    def replacement(x: Any, y: Any, z: Any, kind: str) -> Any:
        assert kind == 'cubic'
        spline = interpolate.RectBivariateSpline(x, y, z.T)
        return lambda new_x, new_y: spline(new_x, new_y).T

    monkeypatch.setattr(interpolate, 'interp2d', replacement)
    monkeypatch.setattr(pos_embed_rel, '_USE_SCIPY', True)
