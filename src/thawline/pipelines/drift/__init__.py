"""Whether new images are like those that the classifier was evaluated on."""
