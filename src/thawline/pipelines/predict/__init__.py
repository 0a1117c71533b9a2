"""A registered model, or any other, over a folder of images."""
