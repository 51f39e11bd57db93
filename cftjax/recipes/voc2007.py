"""Pascal VOC 2007 with part of its training labels, hidden uniformly; 10 % known unless told otherwise.

    cftjax train voc2007 --data.root VOCdevkit --labels.known-proportion 0.1
    cftjax train voc2007 --data.root VOCdevkit --labels.hide none --workdir runs/voc2007-complete
    cftjax sweep voc2007 --data.root VOCdevkit --known-proportions 0.1 0.5 0.9

Needs VOC2007/ImageSets/Main/*.txt and VOC2007/JPEGImages/, of trainval and of test, below the root. test is the test
split; validation is carved from trainval, or is VOC's own with `--data.own-validation`.

Small enough for two cores: add `--backbone.name small_resnet --data.image-size 64 --training.max-steps 100
--ga.num-generations 50`, and `--training.learning-rate 2e-3` where nothing is pretrained.
"""

from cftjax.config import BackboneConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data.voc import VocData


def get_config() -> Config[VocData]:
    """Trained from random weights unless `--backbone.weights` names some; 5,011 images are few for that."""
    return Config(
        data=VocData(year=2007),
        labels=LabelsConfig(unknown="assume_negative", hide="uniform", known_proportion=0.1),
        input=InputConfig(augment="randaugment"),
        backbone=BackboneConfig(name="resnet101", image_size=448),
        training=TrainingConfig(
            epochs=60,
            batch_size=64,
            learning_rate=2e-4,
            weight_decay=1e-4,
            schedule="onecycle",
            warmup=0.2,
            ema_decay=0.99,
            patience=10,
        ),
    )
