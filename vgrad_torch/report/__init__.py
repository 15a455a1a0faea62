"""Reports on logged runs: verdict, tables and pictures."""
