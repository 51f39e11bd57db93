import pytest

from cftjax import cli
from cftjax.default import get_config
from cftjax.input import cache, pipeline
from cftjax.stages import backbone


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
