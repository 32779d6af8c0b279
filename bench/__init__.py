"""Measuring: one harness, a process a case.

`measure` runs cases and writes samples, `summary` turns samples into figures and ratios. A `suite.Bench` puts both
together; `first` has the table of them (`python -m vitrify.bench.first`) and each `bench_*` file is one.
"""
