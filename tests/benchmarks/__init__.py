"""Benchmarks: side by side with `transformers`, and against what the hardware allows. See README.md."""
