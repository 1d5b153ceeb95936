"""Linear and convolution layers held to a Lipschitz constant, and the norms that this takes."""
