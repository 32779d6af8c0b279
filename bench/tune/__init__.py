"""Tuning: which artifact of a model is best on this machine under a bar of quality, found without trying them all."""
