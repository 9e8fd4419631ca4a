# Debian's packages. To be sourced by bash.

# Of two apt-gets at the same time one would fail, at the lock of the other.
apt_one_at_a_time() {
    if command -v flock >/dev/null; then flock "/tmp/rlm-containers-apt-$(id -u).lock" "$@"; else "$@"; fi
}

# apt_update [PREFIX...]: fetch the package lists, without which apt-get knows no package.
apt_update() {
    local sandbox=()
    # apt checks signatures as a user of its own, who has to be root where only root may write to /tmp.
    [[ -k /tmp ]] || sandbox=(-o APT::Sandbox::User=root)
    apt_one_at_a_time "$@" apt-get "${sandbox[@]}" update -qq >&2
}

# apt_install [PREFIX...] -- PACKAGE...
apt_install() {
    local prefix=()
    while [[ $1 != -- ]]; do prefix+=("$1"); shift; done
    shift
    apt_one_at_a_time "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >&2
}
