# shellcheck shell=bash
# For scripts/setup-engine: a journal of what was changed on this machine, and undoing it.
#
# Each line of STATE/journal names one thing. It is written before the thing is done, so that an
# 'up' that dies half way leaves nothing that 'down' does not know of; so undoing must also cope
# with things that were never done.

journal() {
    grep -qxF -- "$*" "$STATE/journal" || printf '%s\n' "$*" >>"$STATE/journal"
}

# What dockerd leaves behind in places that no option of its can change.
journal_new_paths() {
    local path
    for path in "$@"; do
        [[ -e $path ]] || journal path "$path"
    done
}

# A number in a file can belong to another process by now; a path of ours on the command line of a
# process with the right name proves that it is ours.
pids_of_docker() {
    local dir name args
    for dir in /proc/[0-9]*; do
        { read -r name <"$dir/comm" && mapfile -d '' -t args <"$dir/cmdline"; } 2>/dev/null || continue
        [[ $name == @(dockerd|docker-*|containerd*) && "${args[*]} " == *"$1"* ]] && echo "${dir#/proc/}"
    done
    return 0
}

# The throwaway user's processes, and those of its containers under its subordinate ids.
pids_of_user() {
    local uid first count dir owner
    uid=$(id -u "$1")
    IFS=: read -r _ first count < <(grep "^$1:" /etc/subuid) || first=0 count=0
    for dir in /proc/[0-9]*; do
        owner=$(stat -c %u "$dir" 2>/dev/null) || continue
        if ((owner == uid || (owner >= first && owner < first + count))); then echo "${dir#/proc/}"; fi
    done
}

# wait_gone SECONDS PID...
wait_gone() {
    local tries=$(($1 * 10)) pid
    shift
    for pid in "$@"; do
        # A zombie has gone; only its parent can do more.
        while [[ -d /proc/$pid ]] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do
            ((tries-- > 0)) || return 1
            sleep 0.1
        done
    done
}

# stop SECONDS PID...: asks, waits that long, then insists.
stop() {
    local seconds=$1
    shift
    (($#)) || return 0
    if ((seconds)); then
        kill -TERM "$@" 2>/dev/null || true
        wait_gone "$seconds" "$@" && return
    fi
    kill -KILL "$@" 2>/dev/null || true
    wait_gone 5 "$@" || say "warning: still there: $*"
}

unmount_below() {
    local mount
    while read -r mount; do
        umount -l "$mount" 2>/dev/null || true
    done < <(awk -v p="$1/" 'index($2, p) == 1 {print $2}' /proc/mounts | tac)
}

undo_dockerd() {
    local pids pid inits=() more
    # The shims' children are the containers' first processes; with them end the rest. Killed, since
    # dockerd would give each of them 10 s, and all they have is deleted anyway.
    mapfile -t pids < <(pids_of_docker "$STATE/docker/exec/")
    for pid in "${pids[@]}"; do
        [[ $(<"/proc/$pid/comm") == containerd-shim* ]] || continue
        { read -ra more <"/proc/$pid/task/$pid/children"; } || true
        inits+=("${more[@]}")
    done 2>/dev/null
    stop 0 "${inits[@]}"
    # Asked to end, dockerd ends its containerd.
    mapfile -t pids < <(pids_of_docker "--pidfile $STATE/docker/pid ")
    stop 20 "${pids[@]}"
    # What is left now belonged to a dockerd that was killed.
    mapfile -t pids < <(pids_of_docker "$STATE/docker/exec/")
    stop 0 "${pids[@]}"
    unmount_below "$STATE"
}

# dockerd also leaves its bridge, its chains and FORWARD's policy. This is in the journal only where
# there was no docker0 before; other rules in the same tables (podman's) are kept.
undo_network() {
    local policy=$1 tables
    # Another dockerd was started since, and uses them.
    if grep -qx dockerd /proc/[0-9]*/comm 2>/dev/null; then return 0; fi
    ip link delete docker0 2>/dev/null || true
    for tables in iptables ip6tables; do
        command -v "$tables-save" >/dev/null || continue
        { "$tables-save" | grep -v -e DOCKER -e docker0 | "$tables-restore"; } 2>/dev/null || true
    done
    if [[ -n $policy ]]; then iptables -P FORWARD "$policy" 2>/dev/null || true; fi
}

undo_user() {
    local user=$1 pids
    id "$user" >/dev/null 2>&1 || return 0
    # Killed without asking: the storage that they could tidy up is deleted anyway. Again, because
    # one of them may have started another meanwhile.
    for _ in 1 2 3; do
        mapfile -t pids < <(pids_of_user "$user")
        stop 0 "${pids[@]}"
    done
    unmount_below "$STATE"
    # Podman's lock in shared memory, pytest's directories and the like.
    find /tmp /var/tmp /dev/shm -maxdepth 1 -user "$user" -exec rm -rf {} +
    userdel -f "$user" >/dev/null 2>&1 || say "warning: cannot remove user $user"
}

undo_path() {
    case $1 in
        *.json) rm -f "$1" ;;
        *) find "$1" -depth \( -type d -o -type s \) -empty -delete 2>/dev/null || true ;;
    esac
}

down() {
    local kind rest
    [[ -e $STATE ]] || { say "nothing to undo in $STATE"; return; }
    [[ -f $STATE/journal ]] || die "$STATE was not made by '$SELF up'; not touching it"
    while read -r kind rest; do
        say "undo: $kind $rest"
        case $kind in
            dockerd) undo_dockerd ;;
            network) undo_network "$rest" ;;
            user) undo_user "$rest" ;;
            path) undo_path "$rest" ;;
            mode) as_root chmod "${rest%% *}" "${rest#* }" || say "warning: mode of ${rest#* } not restored" ;;
            sysctl) sysctl -qw "$rest" || say "warning: sysctl $rest not restored" ;;
        esac
    done < <(tac "$STATE/journal")
    # The journal goes last: if the deletion is interrupted, 'down' can be repeated.
    find "$STATE" -mindepth 1 -maxdepth 1 ! -name journal -exec rm -rf {} +
    rm -rf "$STATE"
    say "$STATE is gone"
}
