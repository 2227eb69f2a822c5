#!/bin/sh
# Install this package, write the bill of materials, make the place of RALM_HOME, and import what the image is for:
# finish.sh MODULE... The tool that writes the bill (CycloneDX) does not stay; no program keeps rights beyond its caller's.
set -eu
if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi
python -m pip install --quiet --no-deps --no-index --root-user-action=ignore --disable-pip-version-check /opt/build/*.whl
python3 -m venv /tmp/bill
/tmp/bill/bin/python -m pip install --quiet --no-cache-dir --no-deps --require-hashes --disable-pip-version-check \
    --root-user-action=ignore -r /opt/build/bill.txt
mkdir -p /usr/share/sbom
/tmp/bill/bin/cyclonedx-py environment --output-reproducible --output-file /usr/share/sbom/ralm.cdx.json \
    /opt/venv/bin/python
install -d -o 65532 -g 65532 /ralm
for name in "$@"; do RALM_HOME=/tmp/ralm python -c "import $name"; done
ralm --help > /dev/null
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
rm -rf /tmp/*
