"""Entry points, `clvp NAME` or `python -m jobs.NAME`: they read arguments and call what does the work."""
