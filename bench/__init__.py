"""Measuring: one harness, a process a case."""
