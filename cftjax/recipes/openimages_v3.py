"""Open Images V3: 5,000 trainable categories, of which people verified a few for each image; nothing is hidden.

    cftjax train openimages_v3 --data.root openimages-v3 --workdir runs/openimages
    cftjax train openimages_v3 --data.root openimages-v3 --data.only-present

Needs classes-trainable.txt, {train,validation,test}/annotations-human.csv, and the images as {split}/{ImageID}.jpg,
below the root. The second command takes the images that are there and leaves the others out. The run's folder needs
room for an image's 2,048 numbers of 4 bytes and 5,000 labels of 3 bytes: 39 GB for the 1.7 million of the whole set.

Small enough for two cores, with a part of the images: add `--backbone.name small_resnet --data.image-size 64
--training.max-steps 100 --ga.num-generations 50`, and `--training.learning-rate 2e-3` where nothing is pretrained.
"""

from cftjax.config import BackboneConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.data.openimages import OpenImagesData


def get_config() -> Config[OpenImagesData]:
    """Trained from random weights unless `--backbone.weights` names some."""
    return Config(
        data=OpenImagesData(),
        labels=LabelsConfig(unknown="assume_negative"),
        input=InputConfig(augment="randaugment"),
        backbone=BackboneConfig(name="resnet101", image_size=224),
        training=TrainingConfig(
            epochs=20,
            batch_size=128,
            learning_rate=2e-4,
            weight_decay=1e-4,
            schedule="onecycle",
            warmup=0.2,
            ema_decay=0.999,
            patience=5,
        ),
    )
