"""MLflow as one more place for curves and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.visualization import MLflowVisBackend as EngineMLflowVisBackend

from simmim_plugin.registry import VISBACKENDS


@VISBACKENDS.register_module()
class MLflowVisBackend(EngineMLflowVisBackend):
    """MMEngine's backend, made to work with MLflow 3 and with pictures.

    MMEngine's keeps its runs in a folder of files, which MLflow 3 refuses, and hands over pictures under names without
    an ending, which ends the training. Here, without a `tracking_uri`, curves go into `mlflow.db` (SQLite) and pictures
    into `mlflow_artifacts`, both in the folder of the run's logs: a database per start. To compare runs in one, give a
    `tracking_uri`.

    Args:
        save_dir: Set by MMEngine: `vis_data` in the folder of the run's logs.
        tracking_uri: Of a server or a database, such as `sqlite:////data/mlflow.db`; None: see above.
        exp_name: Of the experiment.
        kwargs: See `mmengine.visualization.MLflowVisBackend`.
    """

    def __init__(self, save_dir: str, tracking_uri: str | None = None, exp_name: str = 'simmim', **kwargs: Any) -> None:
        if tracking_uri is None:
            folder = Path(save_dir).absolute()
            tracking_uri = f'sqlite:///{folder}/mlflow.db'
            kwargs.setdefault('artifact_location', (folder / 'mlflow_artifacts').as_uri())
        super().__init__(save_dir, tracking_uri=tracking_uri, exp_name=exp_name, **kwargs)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Record a picture, (H, W, 3) uint8, as `<name>_<step>.png`."""
        super().add_image(f'{name}_{step}.png', image, step, **kwargs)
