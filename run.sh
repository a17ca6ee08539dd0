#!/usr/bin/env bash
# Removes an object from a video in a real ComfyUI, setting up whatever is missing.
#
#   ./run.sh                    the bundled clip
#   ./run.sh CLIP MASK          your own: a video, and an image in which the object is white (or transparent)
#   ./run.sh --serve [...]      the same, and leaves ComfyUI running: prints its address
#   ./run.sh --stop             ends what --serve left running
#
# Results go to output/.
set -euo pipefail
cd "$(dirname "$0")"
CALLED_FROM=$OLDPWD
. scripts/find_python.sh
[ "${1:-}" = --stop ] && exec "$PYTHON" -m scripts.comfyui stop
"$PYTHON" -m scripts.environment run
exec .venv/bin/python -m scripts.demo --from "$CALLED_FROM" "$@"
