"""The embedded default, spelt out: the place to start changing things.

python -m cftjax.train configs/digits.py --workdir runs/digits
"""

from cftjax.default import get_config

__all__ = ["get_config"]
