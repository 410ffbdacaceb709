"""Telling the apps: where they want to be told, of what, and how it gets there."""
