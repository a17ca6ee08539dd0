# Sourced by run.sh and test.sh: sets PYTHON to a Python that PyTorch has wheels for (3.10 to 3.14), or explains.
fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; }

for candidate in "${PYTHON:-}" .venv/bin/python python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    if [ -n "$candidate" ] && fits "$candidate"; then
        PYTHON=$candidate
        break
    fi
    PYTHON=
done
if [ -z "$PYTHON" ]; then
    echo "Python 3.10 to 3.14 is needed and was not found; on Debian and Ubuntu: sudo apt-get install python3 python3-venv" >&2
    exit 1
fi
