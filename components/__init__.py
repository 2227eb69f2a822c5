import ralm  # noqa: F401 - before torch
