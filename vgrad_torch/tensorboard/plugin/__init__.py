"""The Gradient Flow tab of TensorBoard: the server's part in Python, the page in static/."""
