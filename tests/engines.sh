#!/usr/bin/env bash
# Drives engines for real, in an environment that has the test extra: installs those that can be installed here, tells the
# tests which these are, and runs the tests marked `engine`. What could be installed has to work; what could not is skipped,
# and the summary says why.
#     tests/engines.sh .venv [pytest options]
# SECONDS_LEFT in the environment, if any, is how long this may take: Ray, the largest, is left out when that is short.
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
# One by one: there is not a wheel of each for every Python. Ray listens everywhere, so it is kept in a network namespace.
can_have_ray() {
    ((${SECONDS_LEFT:-RAY_SECONDS} >= RAY_SECONDS)) && unshare -n ip link set lo up
} >/dev/null 2>&1
RAY_SECONDS=220 # for all engines together, its 240 MB included; they took 142 on a machine three times overbooked
for engine in mpi dask ray; do
    if { [ "$engine" != ray ] || can_have_ray; } && timeout 150 "$home/bin/pip" install -q -e ".[$engine]"; then
        installed+=" $engine"
    fi
done
echo "engines:${installed:- none could be installed}"
DISTPOOL_ENGINES=$installed "$home/bin/pytest" -m engine "$@"
