"""Images that show the same picture."""
