"""CheXpert: unknown findings count as negative, uncertain ones are left out, AUROC.

    cftjax train chexpert --data.root CheXpert-v1.0-small --workdir runs/chexpert
    cftjax train chexpert --data.root CheXpert-v1.0-small --data.findings fourteen

The first trains on the five findings that the competition scores, the second on all fourteen.

Needs CheXpert-v1.0-small as released: train.csv, valid.csv, and the images in train/ and valid/. valid.csv is the test
split and validation is carved from train by patient, unless a test.csv with labels lies beside them.

Small enough for two cores: add `--backbone.name small_resnet --data.image-size 64 --training.max-steps 100
--ga.num-generations 50`, and `--training.learning-rate 2e-3` where nothing is pretrained.
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
        data=CheXpertData(findings="five"),
        labels=LabelsConfig(unknown="assume_negative", uncertain="ignore"),
        input=InputConfig(augment="crop", flip=False),
        backbone=BackboneConfig(name="resnet50"),
        training=TrainingConfig(epochs=10, batch_size=64, learning_rate=1e-4, metric="AUROC", ema_decay=0.999),
        ga=GAConfig(metric="AUROC"),
        polish=PolishConfig(metric="AUROC"),
        choose=ChooseConfig(metric="AUROC"),
    )
