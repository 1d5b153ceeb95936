"""Transforms of images: reshaping, factoring out, dequantization."""
