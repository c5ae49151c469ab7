"""The kit's publishing process, without the check that the app is Celery's."""

from __future__ import annotations

from unittest.mock import patch

from unlost.chaos import client

if __name__ == "__main__":
    with patch.object(client, "load_app"):
        client.main()
