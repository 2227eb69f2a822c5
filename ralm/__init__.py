"""Retrieval-augmented language models in stages that hand over plain files."""

import os

# Threads of torch and faiss wait for each other by spinning, for long: two programs on the same cores then take twice
# as long together as one after the other (docs/performance.md). It is read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
