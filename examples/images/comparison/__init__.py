"""Several models of the same images, trained for the same time: see `examples.images.compare`."""
