"""The image's health check: exits with 0 when `/health` of this container answers 200.

It asks this machine directly, whatever proxy the environment names. Of the database it knows nothing: to replace a
container because the database is away is no help.
"""

import http.client
import os
import sys


def main() -> int:
    """Ask, and return the exit status."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT") or 3011), timeout=4)
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"/health does not answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
