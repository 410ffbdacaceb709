"""What is done with subscriptions."""
