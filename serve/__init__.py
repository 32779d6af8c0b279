"""Compiled models behind one small server: jobs, workers, protocols and a page."""
