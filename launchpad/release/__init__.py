"""The release checklist: every gate evaluated, every line with its evidence."""
