"""Linear and convolution layers of bounded Lipschitz constant, and the norms of their weights."""
