#!/usr/bin/env bash
# From Debian's packages and PyPI alone: an engine, a base image, our images with a planted secret of the build, and the
# tests in them. With --quickstart also the quickstart as subprocesses and as containers, compared.
# Ends with 77, and says why, where no container engine can start.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${BASE_IMAGE+set}" ] && ! docker/bootstrap.sh start > /dev/null; then
    echo "CONTAINERS NOT TESTED: no container engine can start here (see above)" >&2
    exit 77
fi
# shellcheck source=/dev/null
[ -n "${BASE_IMAGE+set}" ] || . "${RALM_CONTAINERS:-$HOME/.cache/ralm-containers}/env"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"; docker/bootstrap.sh stop' EXIT
export RALM_PLANTED=planted-secret-of-the-build.invalid
printf '\n[install]\ntrusted-host = %s\n' "$RALM_PLANTED" | cat /etc/pip.conf - > "$folder/pip.conf" 2> /dev/null || true
PIP_CONFIG_FILE="$folder/pip.conf" docker/build.sh base cpu
.venv/bin/python -m pytest -m containers tests/containers
if [ "${1:-}" = --quickstart ]; then
    .venv/bin/python -m tests.containers.quickstart
fi
