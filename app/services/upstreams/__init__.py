"""The clients of other services: each speaks to one remote, and knows neither Flask nor the database."""
