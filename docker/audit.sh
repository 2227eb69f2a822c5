#!/usr/bin/env bash
# Ask for known vulnerabilities of all that the images install (docker/lock). Ends with 1 if there are any, with 3 if the
# source of advisories does not answer: then nothing was audited. AUDIT_SERVICE: pypi (by default) or osv.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pip-audit>=2.9,<3"
for lock in docker/lock/*.txt; do
    name="$(basename "$lock" .txt)"
    "$folder/venv/bin/pip-audit" --requirement "$lock" --disable-pip --no-deps --progress-spinner off --format json \
        --vulnerability-service "${AUDIT_SERVICE:-pypi}" > "$folder/$name.json" 2> "$folder/$name.log" || true
done
python3 - "$folder" << 'PYTHON'
import json, sys
from pathlib import Path

is_unanswered, num_found = False, 0
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    try:
        packages = json.loads(path.read_text())["dependencies"]
    except (ValueError, KeyError):
        packages = []
        print(f"{path.stem}: {path.with_suffix('.log').read_text().strip().splitlines()[-1:]}", file=sys.stderr)
    audited = [package for package in packages if "skip_reason" not in package]
    known = [(package, known) for package in audited for known in package["vulns"]]
    print(f"{path.stem}: {len(audited)} of {len(packages)} packages audited, {len(known)} known vulnerabilities")
    for package, vulnerability in known:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"  {package['name']} {package['version']}: {vulnerability['id']}, mended in {fixed}")
    is_unanswered |= not audited
    num_found += len(known)
if is_unanswered:
    print("audit: the source of advisories does not answer for all sets: this is no audit", file=sys.stderr)
sys.exit(1 if num_found else 3 if is_unanswered else 0)
PYTHON
