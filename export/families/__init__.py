"""One file a family: which components its pipelines have and what the exporter must know of each."""
