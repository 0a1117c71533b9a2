"""From splits and a search space to the best parameters."""
