import pytest

from cftjax import cli, train
from cftjax.default import get_config
from cftjax.input import cache, pipeline
from cftjax.stages import backbone, pooled
from cftjax.types import STAGES, Dataset


def test_a_cache_in_memory_serves_every_epochs_validation(tmp_path, monkeypatch):
    words = ["--data.num-train", "40", "--data.num-validation", "8", "--data.num-test", "8", "--input.cache", "memory"]
    config = cli.parse("", get_config, words).config
    opened, whole = [], cache.CachedImages.open
    monkeypatch.setattr(cache.CachedImages, "open", lambda self, row: opened.append(row) or whole(self, row))

    def fit(source, folder, log):
        for _ in range(2):
            validation = source.dataset.splits["validation"]
            list(pipeline.eval_batches(validation, source.preprocessing, source.input, batch_size=4))
        raise KeyboardInterrupt

    monkeypatch.setattr(backbone.loop, "fit", fit)
    with (
        pytest.raises(KeyboardInterrupt),
        backbone.opened(config.data.load(), config, tmp_path / "run") as (run, dataset),
    ):
        backbone.train(run, dataset, config)
    assert sorted(opened) == list(range(8))


def test_folds_are_runs_of_their_own_and_one_table(tmp_path, monkeypatch):
    split = {"AP": [0.5], "mAP": 0.5, "AUROC": [0.6], "mAUC": 0.6}
    reported = {"metric": "AP", "categories": ["cat"], "images": {"test": 4}, "test": dict.fromkeys(STAGES, split)}
    trained = []
    monkeypatch.setattr(
        train, "train_once", lambda loaded, config, folder: trained.append((config, folder)) or reported
    )
    monkeypatch.setattr(pooled, "write", lambda folder, folds: folder / f"{len(folds)}.csv")
    config = cli.parse("", get_config, ["--split.folds", "3"]).config
    train.train_folds(Dataset(("cat",), {}, ""), config, tmp_path)
    assert [config.split.fold for config, _ in trained] == [0, 1, 2]
    assert [folder for _, folder in trained] == [tmp_path / f"fold-{i}" for i in range(3)]
    assert "12 images tested once each" in (tmp_path / "folds.txt").read_text()
