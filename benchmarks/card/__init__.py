"""Parts of `benchmarks/on_gpu.py`, each a process of its own."""
