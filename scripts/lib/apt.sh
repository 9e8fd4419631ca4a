# Debian's packages. To be sourced by bash.

# apt_one_at_a_time COMMAND...: run it while no other does. Of two apt-gets at once one would fail, at the
# lock of the other. COMMAND may be a shell function, which flock(1) cannot run: hence the descriptor.
apt_one_at_a_time() {
    (
        if command -v flock >/dev/null; then flock 9; fi
        "$@" 9>&-
    ) 9>"/tmp/rlm-containers-apt-$(id -u).lock"
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

# apt_download PACKAGE: fetch it into the current directory. While package lists are updated, apt-get finds none.
apt_download() {
    # Root's directories are closed to the user that apt-get downloads as.
    apt_one_at_a_time apt-get -o APT::Sandbox::User=root download -qq "$1" >&2
}
