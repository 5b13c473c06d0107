"""Batching parameters: found by measuring little and computing much, and kept right under live load."""
