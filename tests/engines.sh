#!/usr/bin/env bash
# Drives engines for real, in an environment that has the test extra: installs those that can be installed here, tells the
# tests which these are, and runs the tests marked `engine`. What could be installed has to work; what could not is skipped,
# and the summary says why.
#     tests/engines.sh .venv [pytest options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=$1
shift

# Slurm's daemons need root, and a host whose name is on loopback, for they listen on no other address here.
can_have_slurm() {
    [ "$(id -u)" = 0 ] && command -v apt-get && getent ahostsv4 "$(hostname)" | grep '^127\.'
} >/dev/null

installed=
if can_have_slurm &&
    { timeout 60 apt-get update -qq && timeout 120 apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1; then
    installed+=" slurm"
fi
if "$home/bin/pip" install -q -e '.[engines]'; then
    installed+=" mpi"
fi
echo "engines:${installed:- none could be installed}"
DISTPOOL_ENGINES=$installed "$home/bin/pytest" -m engine "$@"
