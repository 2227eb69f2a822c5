"""What the project's speed and quality are measured with."""

import ralm  # noqa: F401 - before torch
