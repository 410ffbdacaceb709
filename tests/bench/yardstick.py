"""The least that an answer costs under our gunicorn settings: what routes are measured against."""

from flask import Flask

app = Flask(__name__, static_folder=None)


@app.get("/")
def answer() -> dict[str, str]:
    """Answer a constant."""
    return {"status": "ok", "service": "yardstick"}
