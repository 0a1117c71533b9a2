"""From image files to views."""
