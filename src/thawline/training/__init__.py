"""Train what lies above the thaw line."""
