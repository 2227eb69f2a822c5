"""The image references of all components, nowhere else. Images go by dependency set, not by component.

`base` has no torch (download, plan, track, register); `cpu` and `gpu` add the model libraries.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
BASE_IMAGE: Final = f"ralm-pipelines-python-base:{VERSION}"
CPU_IMAGE: Final = f"ralm-pipelines-python-cpu:{VERSION}"
GPU_IMAGE: Final = f"ralm-pipelines-python-gpu:{VERSION}"
