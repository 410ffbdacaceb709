"""What requests cost, beside another checkout and on a large database: `tests.bench.routes`, `.compare`, `.rows`."""
