"""A table of one's own: a CSV or Parquet file with `path` and one column per category (1, 0, -1 or blank).

python -m cftjax.train configs/table.py --data.file labels.csv --workdir runs/mine
"""

from cftjax.config import BackboneConfig, Config, TrainingConfig
from cftjax.data.table import TableData


def get_config() -> Config[TableData]:
    """Trained from random weights unless `--backbone.weights` names some."""
    return Config(
        data=TableData(),
        backbone=BackboneConfig(name="resnet50", image_size=224),
        training=TrainingConfig(epochs=30, learning_rate=1e-3),
    )
