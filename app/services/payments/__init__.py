"""Payments: creating them, and reporting them to runs-service."""
