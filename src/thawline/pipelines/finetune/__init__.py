"""From splits and a strategy to a trained, evaluated and registered classifier."""
