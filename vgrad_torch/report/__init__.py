"""Reports on logged runs, and comparisons of several: verdict, tables and figures, in the terminal or as HTML."""
