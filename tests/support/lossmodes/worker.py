"""The app of one side, for ``celery -A``."""

from __future__ import annotations

import os

from tests.support.lossmodes.app import make_app

app = make_app(os.environ)
