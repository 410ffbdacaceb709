"""What callers ask: payments, lists, statistics."""
