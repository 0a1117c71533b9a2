"""Wiring: which node takes what, and in thin nodes.py what it calls."""
