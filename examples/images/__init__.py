"""Density models of images, trained by Lightning: `python -m examples.images --help`."""
