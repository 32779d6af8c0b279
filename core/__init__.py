"""What every room speaks: errors, tensors, devices, the artifact, the runtime table, progress."""
