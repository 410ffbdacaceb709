"""Stripe's webhook endpoints: one for each account, made and mended by the service itself."""
