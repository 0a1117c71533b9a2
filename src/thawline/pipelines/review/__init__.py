"""A page on which a person looks through the images and corrects their labels."""
