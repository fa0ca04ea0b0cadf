#!/usr/bin/env bash
# Runs the suite, and then CPython's own tests on the drop-ins, on other interpreters, each in a fresh environment outside
# the tree; the latter not where pytest is given options:
#     tests/interpreters.sh python3.10 /opt/python3.14/bin/python3 [-- pytest options]
#     tests/interpreters.sh --found      # only prints the oldest and the newest one on PATH besides python3's own version
#     tests/interpreters.sh --standard .venv/bin/python    # only CPython's own tests, in an environment that is there
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

# CPython's own tests of the modules that the drop-ins stand for. Not every installation has them, and says 77 then.
standard() {
    local python=$1 tests status failed=0
    for tests in pools executors; do
        echo "+ $tests of the standard library"
        status=0
        "$python" "tests/stdlib/$tests.py" || status=$?
        ((status == 0 || status == 77)) || failed=1
    done
    return $failed
}

# What failed is looked at once more, alone, as in .ci/run.
checked() {
    local home=$1
    shift
    if ! "$home/bin/pytest" "$@"; then
        echo "+ once more, what failed"
        "$home/bin/pytest" "$@" --last-failed --last-failed-no-failures=none || return
    fi
    (($#)) || standard "$home/bin/python"
}

suite() {
    local python=$1 home status=0
    shift
    home=$(mktemp -d)
    echo "== $("$python" --version)"
    "$python" -m venv "$home" && "$home/bin/pip" install -q -e '.[test]' && checked "$home" "$@" || status=1
    rm -rf "$home"
    return $status
}

if [ "${1:-}" = --found ]; then
    found
    exit
fi
if [ "${1:-}" = --standard ]; then
    standard "$2"
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
