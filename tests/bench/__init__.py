"""Benchmarks: each figure beside its peers and its raw limit, in the same run. Start with ``python -m tests.bench``."""
