"""Questions to the store: SQL on the command line, ready-made questions, and the SQL editor in the browser."""
