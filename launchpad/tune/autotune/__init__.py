"""Autotune: batching parameters kept right under live load; observe, decide, publish, judge, and go back if need be."""
