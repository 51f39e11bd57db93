"""The embedded default, spelt out: the place to start changing things.

cftjax train digits --workdir runs/digits
"""

from cftjax.default import get_config

__all__ = ["get_config"]
