"""CheXpert: the competition's five findings, unknown as negative, uncertain left out, AUROC.

    python -m cftjax.train configs/chexpert.py --data.root CheXpert-v1.0-small --workdir runs/chexpert

Small enough for two cores: add `--backbone.name small_resnet --backbone.image-size 64 --training.max-steps 100`.
"""

from cftjax.config import (
    BackboneConfig,
    ChooseConfig,
    Config,
    GAConfig,
    InputConfig,
    LabelsConfig,
    PolishConfig,
    TrainingConfig,
)
from cftjax.data.chexpert import CheXpertData


def get_config() -> Config[CheXpertData]:
    """Trained from random weights unless `--backbone.weights` names some."""
    return Config(
        data=CheXpertData(),
        labels=LabelsConfig(unknown="assume_negative", uncertain="ignore"),
        input=InputConfig(augment="crop", flip=False),
        backbone=BackboneConfig(name="resnet50"),
        training=TrainingConfig(epochs=10, batch_size=64, learning_rate=1e-4, metric="AUROC", ema_decay=0.999),
        ga=GAConfig(metric="AUROC"),
        polish=PolishConfig(metric="AUROC"),
        choose=ChooseConfig(metric="AUROC"),
    )
