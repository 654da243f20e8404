"""Benchmarks: each script measures one claim of the documentation, and can be run alone."""
