#!/usr/bin/env bash
# Runs the suite on other interpreters, each in a fresh environment outside the tree:
#     tests/interpreters.sh python3.10 /opt/python3.14/bin/python3 [-- pytest options]
#     tests/interpreters.sh --found      # only prints the oldest and the newest one on PATH besides python3's own version
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version() { # prints "3.10"; fails for a shim that names an interpreter which is not installed
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

found() {
    local own name others=()
    own=$(version python3)
    for name in python3.{10..20}; do
        [ "$name" != "python$own" ] && [ "$(version "$name")" = "${name#python}" ] && others+=("$name")
    done
    ((${#others[@]} == 0)) || printf '%s\n' "${others[0]}" "${others[-1]}" | uniq
}

suite() {
    local python=$1 home
    shift
    home=$(mktemp -d)
    echo "== $("$python" --version)"
    "$python" -m venv "$home" && "$home/bin/pip" install -q -e '.[test]' && "$home/bin/pytest" "$@" && rm -rf "$home" ||
        { rm -rf "$home"; return 1; }
}

if [ "${1:-}" = --found ]; then
    found
    exit
fi

pythons=()
while (($#)) && [ "$1" != -- ]; do
    pythons+=("$1")
    shift
done
(($# == 0)) || shift
((${#pythons[@]})) || { echo "usage: ${BASH_SOURCE[0]} python... [-- pytest options]" >&2; exit 2; }

failed=()
for python in "${pythons[@]}"; do
    suite "$python" "$@" || failed+=("$python")
done
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2; exit 1; }
