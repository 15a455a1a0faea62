"""The TensorBoard side: what our data is called, and the Gradient Flow tab that shows it."""
