"""One adapter a runtime: a component in, a session out."""
