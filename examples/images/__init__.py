"""Density models of images, trained with Lightning: `python -m examples.images --help`."""
