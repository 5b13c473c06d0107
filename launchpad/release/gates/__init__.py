"""The gates of a release, one idea each: a candidate in, measured values with their evidence out."""
