"""Figures of errors, and the report."""
