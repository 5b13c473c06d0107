"""The run store: what was run, measured and changed, in a SQL database, so that questions can be asked across runs.

SQLite by default, PostgreSQL by URL, one schema for both. Files are the truth: a store that is lost, or was away while
a load test ran, is filled again from the run folders and the notes.
"""

from launchpad.store.store import Store, attempt, limits, make_current

__all__ = ["Store", "attempt", "limits", "make_current"]
