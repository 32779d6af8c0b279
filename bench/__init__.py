"""Measuring: one harness, a process a case.

`measure` runs cases and writes samples, `summary` turns samples into figures and ratios, `first` holds the first
benches (`python -m vitrify.bench.first`).
"""
