"""Warmup: real requests to the running server before anybody counts, and how cold the first one found it."""
