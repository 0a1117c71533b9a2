"""Measure and explain a trained network."""
