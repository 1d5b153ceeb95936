"""Transforms of images: changes of shape, factoring out, dequantization."""
