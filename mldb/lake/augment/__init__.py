"""Augmented rows: isotropic noise, walks on the neighbour graph, Langevin chains."""
