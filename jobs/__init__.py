"""Entry points, `python -m jobs.NAME`: they read arguments and call the package that does the work."""
