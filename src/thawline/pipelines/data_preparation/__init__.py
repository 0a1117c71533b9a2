"""From image files to a table of splits."""
