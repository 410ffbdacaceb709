"""What webhooks lost is asked of Stripe."""
