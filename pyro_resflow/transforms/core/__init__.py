"""The base classes of transforms: single-pass evaluation, caching, inverses, compositions."""
