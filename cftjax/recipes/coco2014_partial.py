"""MS-COCO 2014 with part of its training labels, hidden as published (uniformly, 10 % known unless told otherwise).

    cftjax train coco2014_partial --data.root coco --labels.known-proportion 0.1
    cftjax sweep coco2014_partial --data.root coco --known-proportions 0.1 0.5 0.9

The second makes the paper's table: Negative mode, Ignore mode and CFT at each proportion.

Needs annotations/instances_train2014.json and instances_val2014.json, and the images in train2014/ and val2014/, all
below the root. val2014 is the test split; validation is carved from train2014.

The published backbone recipe: ResNet-101 from ImageNet (`--backbone.weights` names a file), 448 pixels, RandAugment,
batch 128, Adam 2e-4, weight decay 1e-4, OneCycle over 60 epochs, EMA 0.999, early stop after 10 epochs.

Small enough for two cores: add `--backbone.name small_resnet --data.image-size 64 --training.max-steps 100
--ga.num-generations 50`, and `--training.learning-rate 2e-3` where nothing is pretrained.
"""

from cftjax.config import BackboneConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data.coco import CocoData


def get_config() -> Config[CocoData]:
    """Trained from random weights unless `--backbone.weights` names some."""
    return Config(
        data=CocoData(year=2014),
        labels=LabelsConfig(unknown="assume_negative", hide="uniform", known_proportion=0.1),
        input=InputConfig(augment="randaugment"),
        backbone=BackboneConfig(name="resnet101", image_size=448),
        training=TrainingConfig(
            epochs=60,
            batch_size=128,
            learning_rate=2e-4,
            weight_decay=1e-4,
            schedule="onecycle",
            warmup=0.2,
            ema_decay=0.999,
            patience=10,
        ),
    )
