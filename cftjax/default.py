"""The embedded default experiment: digits drawn on the spot, a small network, the whole method in a minute or two."""

from __future__ import annotations

from cftjax.config import Config, InputConfig, TrainingConfig
from cftjax.data.digits import DigitsData


def get_config() -> Config[DigitsData]:
    """Negative mode on digits of which positives are noted first; see `cftjax.data.digits`."""
    return Config(
        data=DigitsData(),
        input=InputConfig(augment="shift", flip=False),
        training=TrainingConfig(
            epochs=6, batch_size=64, learning_rate=4e-3, weight_decay=1e-3, schedule="onecycle", warmup=0.2
        ),
    )
