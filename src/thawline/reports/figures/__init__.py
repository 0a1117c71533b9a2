"""Draw every figure, in one style."""
