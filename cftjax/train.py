"""The whole pipeline: `cftjax train [RECIPE or CONFIG.py] [--recipe default|paper] [--workdir RUN] [--options]`.

Without a configuration it trains on digits drawn on the spot, a minute or two on two cores.
"""

from __future__ import annotations

import functools

import jax

from cftjax import cli
from cftjax.data import preflight
from cftjax.default import get_config
from cftjax.runtime import devices, hosts, tensorboard
from cftjax.stages import backbone, heads, outcome


def main() -> None:
    """Train the backbone, embed every split once, search and polish each category's head, choose, report."""
    experiment = cli.parse(
        "Train a multi-label classifier from partial labels, then tune each category's head.", get_config
    )
    config = experiment.config
    if config.tensorboard:
        tensorboard.check()
    # Before anything asks for devices: from here on all hosts do the same.
    hosts.join(experiment.hosts, experiment)
    reading = functools.partial(preflight.load, config.data, allow_missing=config.input.on_bad_image == "skip")
    with backbone.opened(hosts.together(reading), config, experiment.workdir) as (run, dataset):
        made_from = backbone.train(run, dataset, config)
        # The report is the first host's alone, and a model spread over several cannot be asked by one.
        maps = outcome.heatmaps(run) if jax.process_count() == 1 else None
        heads.tune(run, config, made_from, dataset.splits.get("test"), maps)
    if devices.is_primary():
        print(f"Report: {run.folder / 'report'}")


if __name__ == "__main__":
    cli.run(main)
