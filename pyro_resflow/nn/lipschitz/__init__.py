"""Linear and convolution layers held to a Lipschitz constant, and the norms of their weights."""
