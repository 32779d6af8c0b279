"""Single checkpoints in the original layouts of Stable Diffusion and Flux, as sources of an export."""
