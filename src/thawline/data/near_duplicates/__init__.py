"""Find images that show the same picture, and keep them in one split."""
