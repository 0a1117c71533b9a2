"""Results and files of an earlier commit, which later ones are held to."""
