"""Load test: Locust drives the running server with real requests; every answer is checked, every latency recorded."""
