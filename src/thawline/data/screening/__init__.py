"""Open every image file before training, and quarantine what cannot be used."""
