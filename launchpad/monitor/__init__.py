"""The monitor: samples of the running server, from its metrics page and its machine, into the store."""
