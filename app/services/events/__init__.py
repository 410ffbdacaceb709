"""What Stripe tells: stored once, joined to its payment, folded."""
