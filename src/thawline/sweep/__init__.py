"""Search for parameters."""
