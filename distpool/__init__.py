"""Julia's Distributed, a process pool and drop-in replacements for Python's own pools, on one engine."""

__version__ = "0.1.0"
