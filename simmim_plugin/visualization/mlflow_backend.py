"""MLflow backend for curves and images."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.visualization import MLflowVisBackend as EngineMLflowVisBackend

from simmim_plugin.registry import VISBACKENDS


@VISBACKENDS.register_module()
class MLflowVisBackend(EngineMLflowVisBackend):
    """MMEngine's backend, fixed for MLflow 3 and for images.

    MMEngine's backend stores runs in plain files, which MLflow 3 refuses, and names images without a file extension,
    which ends the training with an error. Here, without a `tracking_uri`, curves are stored in `mlflow.db` (SQLite) and
    images in `mlflow_artifacts`, both in the log folder of the run: one database per start. Give a `tracking_uri` to
    collect several runs in one database.

    Args:
        save_dir: Set by MMEngine: `vis_data` in the log folder of the run.
        tracking_uri: URI of a server or a database, such as `sqlite:////data/mlflow.db`; None: see above.
        exp_name: Name of the experiment.
        kwargs: See `mmengine.visualization.MLflowVisBackend`.
    """

    def __init__(self, save_dir: str, tracking_uri: str | None = None, exp_name: str = 'simmim', **kwargs: Any) -> None:
        if tracking_uri is None:
            folder = Path(save_dir).absolute()
            tracking_uri = f'sqlite:///{folder}/mlflow.db'
            kwargs.setdefault('artifact_location', (folder / 'mlflow_artifacts').as_uri())
        super().__init__(save_dir, tracking_uri=tracking_uri, exp_name=exp_name, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Log an image, (H, W, 3) uint8, as `<name>_<step>.png`."""
        super().add_image(f'{name}_{step}.png', image, step, **kwargs)
