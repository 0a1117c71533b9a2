"""Measurements beside the tests: what Thawline costs and brings, against a plain training loop."""
