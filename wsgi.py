"""The WSGI entry point: `gunicorn -c python:app.gunicorn_config wsgi:app`, and what the `flask` command loads."""

from app import create_app

app = create_app()
