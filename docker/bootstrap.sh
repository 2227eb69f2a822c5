#!/usr/bin/env bash
# A container engine and a base image out of Debian's packages alone, for a machine that reaches no image registry.
#   docker/bootstrap.sh start   install podman where root may, make the base image, start podman's service, print how
#                               to use it (also kept in $FOLDER/env)
#   docker/bootstrap.sh stop    end the service; images stay
# FOLDER is $RALM_CONTAINERS, by default ~/.cache/ralm-containers. Nothing in /etc is changed.
set -euo pipefail
FOLDER="${RALM_CONTAINERS:-$HOME/.cache/ralm-containers}"
BASE_IMAGE=localhost/ralm-python:3.11-bookworm
SOCKET="$FOLDER/podman.sock"

fail() { echo "bootstrap: $*" >&2; exit 3; }

answers() { curl --silent --fail --max-time 5 --unix-socket "$SOCKET" http://d/_ping > /dev/null; }

install_packages() {
    local missing=() package
    for package in podman buildah runc catatonit mmdebstrap curl; do
        command -v "$package" > /dev/null || [ -x "/usr/libexec/podman/$package" ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get > /dev/null || fail "missing: ${missing[*]}; install them (no apt-get here)"
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; run as root: apt-get install --no-install-recommends ${missing[*]}"
    apt-get update --quiet=2 || fail "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" > /dev/null \
        || fail "apt-get install ${missing[*]} failed"
}

write_settings() {
    # runc, since crun refuses hybrid cgroups; limits that an unprivileged parent can pass on; no network of its own.
    cat > "$FOLDER/containers.conf" << CONF
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=16384:16384"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
    cat > "$FOLDER/env" << ENV
export CONTAINERS_CONF="$FOLDER/containers.conf"
export DOCKER_HOST="unix://$SOCKET"
export CONTAINER_ENGINE=podman
export BASE_IMAGE="$BASE_IMAGE"
ENV
}

make_base_image() {
    podman image exists "$BASE_IMAGE" && return
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$FOLDER/base.tar" || fail "mmdebstrap failed"
    podman import --quiet "$FOLDER/base.tar" "$BASE_IMAGE" > /dev/null || fail "podman cannot import the base image"
    rm "$FOLDER/base.tar"
}

start() {
    mkdir -p "$FOLDER"
    install_packages
    write_settings
    # shellcheck source=/dev/null
    . "$FOLDER/env"
    podman info > /dev/null 2> "$FOLDER/podman.log" || fail "podman does not work here: $(tail -n 1 "$FOLDER/podman.log")"
    make_base_image
    podman run --rm "$BASE_IMAGE" true 2> "$FOLDER/podman.log" \
        || fail "no container can start here: $(tail -n 1 "$FOLDER/podman.log")"
    if ! answers; then
        cd "$FOLDER" # containers that run out of memory leave a file where their service was started
        setsid podman system service --time=0 "unix://$SOCKET" > service.log 2>&1 < /dev/null &
        echo $! > podman.pid
        for _ in $(seq 100); do answers && break; sleep 0.1; done
        answers || fail "podman's service does not answer: $(tail -n 1 "$FOLDER/service.log")"
    fi
    cat "$FOLDER/env"
}

stop() {
    [ -f "$FOLDER/podman.pid" ] || return 0
    kill "$(cat "$FOLDER/podman.pid")" 2> /dev/null || true
    rm -f "$FOLDER/podman.pid" "$SOCKET"
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: docker/bootstrap.sh start|stop" >&2; exit 2 ;;
esac
