"""A table of one's own: a CSV or Parquet file with `path` and one column per category (1, 0, -1 or blank).

    cftjax train csv --data.file labels.csv --workdir runs/mine

Needs the file, and the images at its paths below the folder of the file, or below `--data.images`. It may have a column
`split` (train, validation, test) and a column `group` (patient, camera, …), kept together when validation is carved.

Small enough for two cores: add `--backbone.name small_resnet --data.image-size 64 --training.max-steps 100
--ga.num-generations 50`.
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
