"""The routes: each takes its input, makes one call, and answers."""
