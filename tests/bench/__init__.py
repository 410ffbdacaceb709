"""What requests cost, and what they take on a large database: `python -m tests.bench.routes`, `tests.bench.rows`."""
