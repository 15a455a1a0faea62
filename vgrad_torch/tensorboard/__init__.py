"""Writes TensorBoard event files, reads them back, and shows them in the Gradient Flow tab."""
