# An engine for the time of a script, set up if none is there. To be sourced by bash.
# The caller has 'here', the directory of scripts.

say() { printf '%-10s  %s\n' "$1" "$2" >&2; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The comment at the top of the script.
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0"; }

# Stop what was set up, however the script ends.
state=
cluster_state=
clean_up() {
    [[ -z $cluster_state ]] || "$here/setup-cluster" down "$cluster_state" >/dev/null 2>&1 ||
        say warning "the cluster in $cluster_state is still there: scripts/setup-cluster down $cluster_state"
    [[ -z $state ]] || "$here/setup-engine" down "$state" >/dev/null 2>&1 ||
        say warning "the engine in $state is still there: scripts/setup-engine down $state"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# call ENGINE ARGUMENT...: ENGINE is a path, or a command with its first arguments (podman --remote).
call() {
    local words
    if [[ -x $1 ]]; then words=("$1"); else read -ra words <<<"$1"; fi
    shift
    if command -v timeout >/dev/null; then timeout 60 "${words[@]}" "$@"; else "${words[@]}" "$@"; fi
}

# Whether the engine itself answers: its command may be there without it.
answers() { call "$1" info >/dev/null 2>&1; }

set_up_engine() {
    [[ $1 == docker || $1 == podman ]] || return
    # Not in $TMPDIR: the engine makes sockets in it, and their paths must be short.
    [[ -n $state ]] || state=$(mktemp -d /tmp/rlm-engine.XXXXXX)
    "$here/setup-engine" up "$state" "$1" || return
    # shellcheck source=/dev/null
    . "$state/env"
}

# Print the engine to use: one that answers, else one that is installed, else docker.
choose_engine() {
    local candidate
    for candidate in docker podman; do
        if answers "$candidate"; then echo "$candidate"; return; fi
    done
    if ! command -v docker >/dev/null && command -v podman >/dev/null; then echo podman; else echo docker; fi
}

# ensure_answers ENGINE
ensure_answers() {
    answers "$1" && return
    say engine "$1 does not answer; setting it up for the time of this script"
    set_up_engine "$1" || fail "there is no engine behind '$1'; start docker or podman"
}

# ensure_cluster DIRECTORY NODES: the cluster of setup-cluster, brought up for the time of this script if it is not.
ensure_cluster() {
    if [[ ! -f $1/env ]]; then
        say cluster "bringing up $2 nodes; the first time Kubernetes is built, which takes some minutes"
        cluster_state=$1
        "$here/setup-cluster" up "$1" "$2" || fail "there is no cluster"
    fi
    # shellcheck source=/dev/null
    . "$1/env"
}

# ensure_runs ENGINE IMAGE: some engines answer but run nothing without a setting that setup-engine knows.
ensure_runs() {
    local said
    said=$(call "$1" run --rm --network none "$2" true 2>&1) && return
    say engine "$1 answers but runs nothing as it is; looking for the settings that it needs"
    set_up_engine "$1" && said=$(call "$1" run --rm --network none "$2" true 2>&1) && return
    fail "$1 cannot run $2: $said"
}
