"""What all transforms share: one pass for value and log-determinant, inverses, compositions."""
