"""Customers: one at Stripe for an app's organisation, and what it pays with."""
