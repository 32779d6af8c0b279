"""vitrify."""
