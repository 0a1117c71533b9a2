"""Which images are probably labeled wrongly, in two splits at once, or out of place."""
