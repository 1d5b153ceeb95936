# Sourced by the scripts here.
#
# install PACKAGE==VERSION ...   installs into a virtual environment in a temporary folder, which is
#                                deleted when the script ends; $PYTHON selects its interpreter
# run [ARGUMENT ...] < PROGRAM   runs a Python program in it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

install() {
    [ -d "$folder/venv" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --no-cache-dir "$@"
}

run() {
    OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - "$@"
}
