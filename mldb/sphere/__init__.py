"""Mathematics on the sphere: the von Mises-Fisher law, mixtures, nearest rows. No I/O."""
