"""From a name to a network."""
