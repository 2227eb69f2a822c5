#!/usr/bin/env bash
# Build images: docker/build.sh [TARGET...], by default base and cpu. Prints time and size of each.
# CONTAINER_ENGINE: podman or docker, by default the first found. BASE_IMAGE, TORCH_INDEX: see the Dockerfile.
# pip's settings (PIP_CONFIG_FILE or /etc/pip.conf, PIP_FIND_LINKS, PIP_CERT) reach the build as secrets, and stay out of it.
set -euo pipefail
cd "$(dirname "$0")/.."
ENGINE="${CONTAINER_ENGINE:-$(command -v podman > /dev/null && echo podman || echo docker)}"
VERSION="$(sed -n 's/^VERSION: Final = "\(.*\)"/\1/p' components/images.py)"
REVISION="$(git rev-parse HEAD 2> /dev/null || true)"
command -v "$ENGINE" > /dev/null || { echo "build: neither podman nor docker is installed" >&2; exit 3; }

secrets="$(mktemp -d)"
trap 'rm -rf "$secrets"' EXIT
options=(--network host --file docker/Dockerfile --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION")
for name in BASE_IMAGE TORCH_INDEX; do
    [ -n "${!name+set}" ] && options+=(--build-arg "$name=${!name}")
done
settings="${PIP_CONFIG_FILE:-/etc/pip.conf}"
if [ -f "$settings" ] || [ -n "${PIP_FIND_LINKS:-}" ]; then
    python3 - "$settings" "${PIP_FIND_LINKS:-}" > "$secrets/pip.conf" << 'PYTHON'
import configparser, sys

settings = configparser.RawConfigParser()
settings.read(sys.argv[1])
if sys.argv[2]:
    if not settings.has_section("install"):
        settings.add_section("install")
    settings.set("install", "find-links", sys.argv[2])
settings.write(sys.stdout)
PYTHON
    if [ -n "${PIP_FIND_LINKS:-}" ]; then # builds of torch on this disk; the public index is not asked then
        [ "$ENGINE" != podman ] || options+=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro")
        [ -n "${TORCH_INDEX+set}" ] || options+=(--build-arg TORCH_INDEX=)
    fi
    options+=(--secret "id=pipconf,src=$secrets/pip.conf")
fi
[ ! -f "${PIP_CERT:-}" ] || options+=(--secret "id=ca,src=$PIP_CERT")

for target in "${@:-base cpu}"; do
    for name in $target; do
        image="ralm-pipelines-python-$name:$VERSION"
        started=$SECONDS
        "$ENGINE" build "${options[@]}" --target "$name" --tag "$image" . > "$secrets/log" 2>&1 || {
            tail -n 40 "$secrets/log" >&2
            echo "build: $image failed" >&2
            exit 1
        }
        bytes="$("$ENGINE" image inspect --format '{{.Size}}' "$image")"
        printf '%-40s %4d s  %5d MB\n' "$image" $((SECONDS - started)) $((bytes / 1000000))
    done
done
