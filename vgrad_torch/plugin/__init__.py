"""The TensorBoard side: what our data is called, and (later) the tab that shows it."""
