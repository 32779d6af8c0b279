"""What a precision means."""
