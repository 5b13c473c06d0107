"""Report: a run folder as a page that one is glad to open, and as Markdown for the review."""
