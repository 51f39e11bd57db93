"""CFT on models of other libraries, in place: `cftjax.torch` is pytorch.py, `cftjax.keras` is keras3.py."""
