"""The stand-in of Stripe."""
