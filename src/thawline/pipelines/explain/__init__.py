"""What in an image speaks for the class that a classifier sees in it."""
