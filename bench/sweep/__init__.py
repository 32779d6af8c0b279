"""Sweeps: pictures over up to three axes, as a labelled grid and a table."""
