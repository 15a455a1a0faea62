"""What is written to TensorBoard event files, read back from them, and shown in the Gradient Flow tab."""
