"""A whole classifier, trained on images."""

from __future__ import annotations

import dataclasses
from typing import Any

import grain
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from cftjax import backbones, types
from cftjax.config import BackboneConfig, ClassifierConfig, Config, InputConfig, LabelsConfig, TrainingConfig
from cftjax.embeddings import embed
from cftjax.input import pipeline
from cftjax.input.preprocessing import Preprocessing
from cftjax.runtime import devices
from cftjax.training import classifier
from cftjax.training.classifier import Abstract, Architecture, Classifier, Logits
from cftjax.training.source import Validation, logits_of


@dataclasses.dataclass(frozen=True)
class Images:
    """A whole classifier, trained on images.

    Attributes:
        dataset: with the split `train`, and `validation` where there is one.
        preprocessing: of the images.
        labels: what becomes of unknown and uncertain ones.
        input: threads, augmentation, and what happens to images that cannot be opened.
        backbone: the network.
        last_layer: how what it sees at every place becomes a logit.
        training: loss, optimizer, schedule.
        embed_batch_size: validation images per step of each device.
        seed: of initial weights, order, augmentation and mixing.
    """

    dataset: types.Dataset
    preprocessing: Preprocessing
    labels: LabelsConfig
    input: InputConfig
    backbone: BackboneConfig
    last_layer: ClassifierConfig
    training: TrainingConfig
    embed_batch_size: int
    seed: int

    @property
    def records(self) -> types.Records:
        """The training split."""
        return self.dataset.splits["train"]

    @property
    def architecture(self) -> Architecture:
        """What decides the classifier's variables."""
        dtype = devices.compute_dtype(self.training.compute_dtype)
        return Architecture(self.backbone, len(self.dataset.categories), dtype, self.last_layer)

    def batches(self, bad_images: set[str]) -> grain.DatasetIterator[types.Batch]:
        """Endless training batches, shuffled and augmented."""
        return iter(
            pipeline.train_batches(
                self.records,
                self.labels,
                self.preprocessing,
                self.input,
                batch_size=self.training.batch_size,
                seed=self.seed,
                shard=devices.host_shard(),
                bad_images=bad_images,
            )
        )

    def abstract(self) -> Abstract:
        """Structure and shapes of the classifier."""
        return classifier.abstract(self.architecture)._replace(normalisation=self.preprocessing.normalisation)

    def create(self) -> Classifier:
        """The classifier with random weights, or the backbone's pretrained ones."""
        return classifier.new(self.architecture, self.seed)

    def judged(self, model: Classifier, mesh: Mesh) -> Validation | None:
        """All validation images, embedded by the model of the moment."""
        if "validation" not in self.dataset.splits:
            return None
        records = self.dataset.splits["validation"]
        # Embeddings of every category's own need not fit into memory; their logits do.
        module = Logits(model) if self.last_layer.places else model.backbone
        parts = list(
            embed.embed_rows(module, records, self.preprocessing, self.input, self.embed_batch_size, mesh=mesh)
        )
        z, opened = np.concatenate([part.z for part in parts]), np.concatenate([part.opened for part in parts])

        def columns(some: Int[np.ndarray, " k"]) -> tuple[np.ndarray, np.ndarray]:
            labels = records.labels.columns(some)
            return labels.labels, labels.known & opened[:, None]

        logits = (lambda some: z[:, some]) if self.last_layer.places else logits_of(z, classifier.heads_of(model))
        return Validation((len(records), len(self.dataset.categories)), logits, columns)

    def classifier(self, params: PyTree, stats: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and statistics as they are, for what is trained is the whole classifier."""
        return params, stats


def of_experiment(dataset: types.Dataset, config: Config[Any]) -> Images:
    """The classifier of an experiment on its images.

    Args:
        dataset: with the split `train`, and `validation` where there is one.
        config: its data.scene_size, labels, input, backbone, classifier, training, embed.batch_size and seed are read.
    """
    return Images(
        dataset,
        backbones.preprocessing(config.backbone, types.scene_size(config.data)),
        config.labels,
        config.input,
        config.backbone,
        config.classifier,
        config.training,
        config.embed.batch_size,
        config.seed,
    )
