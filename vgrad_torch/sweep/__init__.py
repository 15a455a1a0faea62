"""Training a grid of networks and comparing them."""
