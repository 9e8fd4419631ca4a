# shellcheck shell=bash disable=SC2154
# For scripts/build-base-image: a root file system that behaves like python:X.Y-slim, made of what a
# machine without a registry has. Uses the caller's say, die, have, work, variant, version, packages.

# Debian's release with Python 3.11; that version needs no interpreter on this host.
readonly SUITE=bookworm SUITE_PYTHON=3.11

# Any Python of this host will do for unpacking and for pip; it need not be the image's version.
install_wheels() {
    local pip=(env PIP_ROOT_USER_ACTION=ignore python3 -m pip --quiet)
    local for_version=(--only-binary=:all: --python-version "$version")
    "${pip[@]}" --version >/dev/null 2>&1 || die "pip is missing on this host: apt-get install python3-pip"
    # In two steps, since 'pip install --python-version' (23.2) minds the version of the Python it runs
    # on in Requires-Python, and so chooses releases too new for an older one; 'pip download' does not.
    "${pip[@]}" download --dest "$work/downloads" "${for_version[@]}" "${packages[@]}" >&2 \
        || die "pip could not download: ${packages[*]}"
    "${pip[@]}" install --no-compile --no-deps --target "$1" "${for_version[@]}" "$work"/downloads/*.whl >&2 \
        || die "pip could not install: ${packages[*]}"
}

get_mmdebstrap() {
    have mmdebstrap && return
    if have apt-get && [[ $(id -u) == 0 ]]; then
        say "installing mmdebstrap"
        apt-cache show mmdebstrap >/dev/null 2>&1 || apt_update
        apt_install -- mmdebstrap debian-archive-keyring && return
    fi
    say "mmdebstrap is missing (as root: apt-get install mmdebstrap)"
    return 1
}

# Packages are unpacked and not configured: a quarter of the time and of the size of a real
# installation, and no need for root.
from_debian() {
    local root=$1 dir packages=python3-minimal,libpython3-stdlib,python3.11-venv,libstdc++6,libgcc-s1,busybox-static
    mmdebstrap --quiet --mode=auto --variant=extract --include="$packages" "$SUITE" "$work/debian.tar" >&2 || return
    tar -C "$root" --exclude='./dev/*' -xf "$work/debian.tar" || return
    rm "$work/debian.tar"
    # As an installed Debian has it: one /usr, with links to it.
    for dir in bin sbin lib lib64; do
        mkdir -p "$root/usr/$dir"
        if [[ -d $root/$dir && ! -L $root/$dir ]]; then
            cp -a "$root/$dir/." "$root/usr/$dir/"
            rm -rf "${root:?}/$dir"
        fi
        ln -sfn "usr/$dir" "$root/$dir"
    done
    rm -rf "$root"/usr/share/{man,doc,locale,info,lintian,perl5} "$root"/var/{cache,lib}
    rm -f "$root/usr/lib/python$version/EXTERNALLY-MANAGED"
    ln -s "/usr/bin/python$version" "$root/usr/local/bin/python$version"
    # Where Debian's Python looks for what is not Debian's.
    mkdir -p "$root/usr/local/lib/python$version/dist-packages"
}

# Prints the interpreter and its library. Its own answer decides, not its file name: a shim of
# pyenv's may be of another version, or refuse to run.
find_interpreter() {
    local candidate
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python"$version" \
        "$HOME"/.local/share/uv/python/cpython-"$version".*/bin/python"$version" \
        "$(type -P "python$version" || true)" {/usr/local,/usr}/bin/python"$version"; do
        [[ -x $candidate ]] && "$candidate" -I -c "
import os, sys, sysconfig
if '%d.%d' % sys.version_info[:2] != '$version':
    sys.exit(1)
print(os.path.realpath(sys.executable))
print(sysconfig.get_path('stdlib'))" 2>/dev/null && return
    done
    return 1
}

# Copies the libraries of programs to where they are on this host, so that whatever names them by
# path, an rpath for example, still finds them.
copy_libraries() {
    local root=$1 library
    shift
    {
        # It fails for a static program, and has nothing to say then.
        { ldd "$@" 2>/dev/null || true; } | awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\// && NF == 2 {print $1}'
        # What wheels are linked with, or pthread_exit and name resolution load, and every system has.
        PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null \
            | awk '$1 ~ /^lib(gcc_s|stdc\+\+|c|m|dl|rt|util|pthread|resolv|nss_dns|nss_files)\.so\.[0-9]+$/ {print $NF}'
    } | sort -u | while read -r library; do
        install -D -m 0755 "$library" "$root$library"
    done
}

know_busybox() {
    apt-cache show busybox-static >/dev/null 2>&1 || [[ $(id -u) != 0 ]] || apt_update
}

copy_busybox() {
    local root=$1
    if have busybox; then
        install -m 0755 "$(type -P busybox)" "$root/usr/bin/busybox"
        copy_libraries "$root" "$root/usr/bin/busybox"
    elif have apt-get && know_busybox && (cd "$work" && apt_download busybox-static); then
        # Fetching and unpacking a package needs no root; installing it would.
        dpkg-deb -x "$work"/busybox-static_*.deb "$work/busybox"
        install -m 0755 "$(find "$work/busybox" -path '*bin/busybox')" "$root/usr/bin/busybox"
    else
        die "the image needs a shell, and this host has no busybox: apt-get install busybox-static"
    fi
}

from_host() {
    local root=$1 found lib=$1/usr/local/lib/python$version
    mapfile -t found < <(find_interpreter)
    ((${#found[@]} == 2)) || {
        say "error: no Python $version for an image: no registry answers for python:$version-slim, and"
        say "this host has no such interpreter (pyenv, uv, python$version on PATH). Try: pyenv install $version"
        exit "$EXIT_NO_PYTHON"
    }
    say "packing ${found[0]}"
    install -m 0755 "${found[0]}" "$root/usr/local/bin/python$version"
    mkdir -p "$lib/site-packages"
    # What this host has in site-packages stays out: it may be anything. The rest is left out of
    # python:slim, too, or needs a display.
    tar -C "${found[1]}" --exclude='./*-packages/*' --exclude=__pycache__ --exclude=test --exclude=tests \
        --exclude=idle_test --exclude='*.a' --exclude=EXTERNALLY-MANAGED --exclude='./config-*' \
        --exclude=./idlelib --exclude=./turtledemo --exclude=./tkinter --exclude='_tkinter.*' -cf - . | tar -C "$lib" -xf -
    copy_libraries "$root" "${found[0]}" "$lib"/lib-dynload/*.so
    if have strip; then
        find "$root" -name '*.so*' -type f -exec strip --strip-debug {} + 2>/dev/null || true
    fi
    copy_busybox "$root"
}

add_pip() {
    local root=$1 wheel
    # The wheel that every Python carries for 'python -m venv'.
    wheel=$(find "$root" -name 'pip-*.whl' -print -quit)
    if [[ -n $wheel ]]; then python3 -m zipfile -e "$wheel" "$2"; else packages+=(pip); fi
    printf '#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n' \
        >"$root/usr/local/bin/pip"
    chmod 0755 "$root/usr/local/bin/pip"
    ln -s pip "$root/usr/local/bin/pip3"
}

# Byte code depends on the version alone, so an interpreter of this host can make it. The time of a
# source is not compared: what is imported may be older than what tar has made of it.
compile_library() {
    local root=$1 found
    mapfile -t found < <(find_interpreter)
    if ((${#found[@]} != 2)); then say "there is no byte code in it: this host has no Python $version"; return; fi
    "${found[0]}" -I -m compileall -q -j 0 -s "$root" --invalidation-mode unchecked-hash \
        "$root/usr/lib/python$version" "$root/usr/local/lib/python$version" >/dev/null 2>&1 || true
}

finish_root() {
    local root=$1 applet
    "$root/usr/bin/busybox" --list | while read -r applet; do
        # Real tools, where there are some, win.
        [[ -e $root/usr/bin/$applet || -e $root/usr/sbin/$applet ]] || ln -s busybox "$root/usr/bin/$applet"
    done
    mkdir -p "$root"/{dev,proc,sys,run,etc,root,home,var/tmp,tmp}
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    # An older glibc asks DNS first, and then --add-host would not count.
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
    chmod -R u+rwX,go+rX,go-w "$root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
}

new_root() {
    rm -rf "$1"
    mkdir -p "$1"/usr/local/{bin,lib}
}

merge_usr() {
    mkdir -p "$1"/usr/{bin,sbin,lib,lib64}
    ln -s usr/{bin,sbin,lib,lib64} "$1"
}

# build_rootfs TAR
build_rootfs() {
    local root=$work/root site
    new_root "$root"
    if [[ $variant == no-python ]]; then
        merge_usr "$root"
        copy_busybox "$root"
    else
        if ! { [[ $version == "$SUITE_PYTHON" ]] && get_mmdebstrap && from_debian "$root"; }; then
            new_root "$root"
            merge_usr "$root"
            from_host "$root"
        fi
        site=$(echo "$root/usr/local/lib/python$version"/*-packages)
        add_pip "$root" "$site"
        ((${#packages[@]} == 0)) || install_wheels "$site"
        ((compiled)) && compile_library "$root"
        ln -s "python$version" "$root/usr/local/bin/python3"
        ln -s python3 "$root/usr/local/bin/python"
    fi
    finish_root "$root"
    # All files are root's, whoever built it. A half-written file must never have the final name.
    tar -C "$root" --owner=0 --group=0 --numeric-owner -cf "$work/rootfs.tar" .
    mv "$work/rootfs.tar" "$1"
}
