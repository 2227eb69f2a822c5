#!/usr/bin/env bash
# Write docker/lock/*.txt: what the images install, every file by its hash. Versions are those of constraints.txt.
# Each file lists what it adds to the one it builds on. CPU builds of torch are found through TORCH_INDEX or PIP_FIND_LINKS.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "uv>=0.9,<1"

compile() { # NAME [ARGUMENTS OF uv...]: the whole list of one set
    "$folder/venv/bin/uv" pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --constraints constraints.txt --output-file "$folder/$1" "${@:2}"
}

minus() { # NAME BEFORE...: the entries of NAME that no earlier set has
    python3 - "docker/lock/$1.txt" "$folder/$1" "${@:2}" <<'PYTHON'
import re, sys
from pathlib import Path

def entries(path):
    return re.findall(r"^[a-zA-Z0-9].*(?:\n .*)*", Path(path).read_text(), flags=re.M)

target, whole, *earlier = sys.argv[1:]
known = {entry for path in earlier for entry in entries(path)}
Path(target).write_text("".join(f"{entry}\n" for entry in entries(whole) if entry not in known))
PYTHON
}

echo $'pip\nsetuptools>=77\nwheel' > "$folder/tools.in"
echo "kfp==2.17.0" > "$folder/kfp.in"
echo "cyclonedx-bom>=7,<8" > "$folder/bill.in"
torch=(${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX" --index-strategy unsafe-best-match} ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"})
compile tools "$folder/tools.in"
compile base pyproject.toml --extra s3
compile cpu pyproject.toml --extra s3 --extra cluster --extra cpu "${torch[@]}"
compile gpu pyproject.toml --extra s3 --extra cluster --extra gpu
compile mlflow pyproject.toml --extra s3 --extra server
compile test pyproject.toml --extra cluster --extra cpu --extra test "${torch[@]}"
compile base-test pyproject.toml --extra test
compile bill "$folder/bill.in"
"$folder/venv/bin/uv" pip compile --quiet --generate-hashes --no-annotate --no-header --no-deps \
    --output-file "$folder/kfp" "$folder/kfp.in"
mkdir -p docker/lock
minus tools
minus kfp
minus base "$folder/tools"
minus cpu "$folder/base" "$folder/tools"
minus gpu "$folder/base" "$folder/tools"
minus mlflow "$folder/base" "$folder/tools"
minus test "$folder/base" "$folder/cpu" "$folder/tools"
minus base-test "$folder/base" "$folder/tools"
minus bill
