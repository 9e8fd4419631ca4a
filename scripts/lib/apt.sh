# Debian's package lists. To be sourced by bash.

# Without them apt-get knows no package. Checking their signatures takes apt's own user to write to
# /tmp, so where only root may do that, it has to be root.
apt_update() {
    local user=()
    [[ -k /tmp ]] || user=(-o APT::Sandbox::User=root)
    "$@" apt-get "${user[@]}" update -qq >&2
}
