#!/bin/sh
# Install lock files into the image's environment: install.sh NAME...; nothing that is not listed there by its hash.
set -eu
if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi
for name in "$@"; do
    python -m pip install --quiet --no-cache-dir --no-deps --no-build-isolation --require-hashes \
        --disable-pip-version-check --root-user-action=ignore \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "/opt/build/$name.txt"
done
