"""The numbered cases of Julia's Distributed, one file for each section; each test carries the number of its case."""
