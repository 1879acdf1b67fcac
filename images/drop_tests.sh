#!/bin/sh
# What packages bring to test themselves: an eighth of the demo's image, which nothing here imports.
# Run in the layer that installed them; a later one would only hide the files.
set -e
site=$(echo /opt/venv/lib/python3*/site-packages)
find "$site" -type d \( -name tests -o -path "$site/torch/test" \) -prune -exec rm -rf {} +
[ ! -d "$site/torch/bin" ] || find "$site/torch/bin" -type f -iname '*test*' -delete
