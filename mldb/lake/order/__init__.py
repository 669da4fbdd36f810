"""In which order a pass visits the rows of a lake, and how likely each is drawn."""
