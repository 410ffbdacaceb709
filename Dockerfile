# One image for gunicorn, the worker, migrations and every other command. It compiles nothing: each dependency is a wheel.
FROM python:3.11-slim-bookworm AS dependencies
COPY requirements.lock /
RUN python -m venv --without-pip /venv \
    && pip --python /venv install --no-cache-dir --require-hashes --only-binary :all: --requirement /requirements.lock

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin stripe-service \
    && pip uninstall --yes --root-user-action ignore pip setuptools wheel
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=dependencies /venv /venv
WORKDIR /srv/stripe-service
COPY pyproject.toml wsgi.py deploy/health_check.py ./
COPY openapi openapi
COPY migrations migrations
COPY app app
# Whoever runs it may write nowhere but in /tmp, so this is the last time that it can be compiled.
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 3011
# For the web; a worker is run with --no-healthcheck, since it serves no HTTP.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "health_check.py"]
CMD ["gunicorn", "-c", "python:app.gunicorn_config", "wsgi:app"]
