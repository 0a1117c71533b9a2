"""From files to views of images."""
