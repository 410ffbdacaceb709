"""What the people in charge ask."""
