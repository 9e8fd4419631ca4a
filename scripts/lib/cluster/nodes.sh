# For scripts/setup-cluster: starts and ends the parts of a cluster, and does harm to them.
#
# The control plane is in this machine's own namespaces (127.0.0.1:16443 and 10.250.0.1). Node N is the network
# namespace rk-nN with the address 10.250.0.1N and pods in 10.251.N.0/24.
set -euo pipefail

BIN=$STATE/bin
RUN=$STATE/run
PREFIX=rk
# No option of theirs moves these.
FIXED=(/run/containerd/runc/k8s.io /var/lib/cni /var/lib/kubelet /var/log/pods /var/log/containers)
# Connections that say nothing are cut after that; by default it is four hours.
STREAM_IDLE=20s
SYSCTLS=(kernel.panic kernel.panic_on_oops vm.overcommit_memory)
mkdir -p "$RUN"
cd "$RUN"

start() { # NAME COMMAND...
    local name=$1
    shift
    setsid nohup "$@" >>"$RUN/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
}
lives() {
    [[ -s $RUN/$1.pid ]] && grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(<"$RUN/$1.pid")/status" 2>/dev/null
}
stop() {
    if lives "$1"; then kill -9 "$(<"$RUN/$1.pid")"; fi
    rm -f "$RUN/$1.pid"
}
# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "$what takes too long" >&2; return 1; }
        sleep 0.2
    done
}
within() { # NODE COMMAND...
    local node=$1
    shift
    nsenter "--net=/run/netns/$PREFIX-n$node" "$@"
}
kubeconfig() { # ADDRESS
    cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$1:16443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: $(<token)}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
YAML
}

start_api() {
    start apiserver "$BIN/kube" kube-apiserver --etcd-servers=http://127.0.0.1:12379 --secure-port=16443 \
        --service-cluster-ip-range=10.252.0.0/24 --bind-address=0.0.0.0 --advertise-address=10.250.0.1 \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.key \
        --service-account-signing-key-file=sa.key --cert-dir="$RUN/certs" --token-auth-file=tokens.csv \
        --authorization-mode=RBAC --allow-privileged=true --feature-gates=TTLAfterFinished=true \
        --kubelet-preferred-address-types=InternalIP --enable-admission-plugins=NodeRestriction \
        --target-ram-mb=200 --min-request-timeout=300
    wait_for 120 "the API server" api_is_ready || { tail -n 3 apiserver.log >&2; return 1; }
}
api_is_ready() {
    curl -sk -m 2 -H "Authorization: Bearer $(<token)" https://127.0.0.1:16443/readyz | grep -q ^ok
}
# It serves the connections that are open for up to a minute, and takes no new ones.
end_api() {
    kill -TERM "$(<apiserver.pid)"
    wait_for 120 "the end of the API server" api_has_ended
}
api_has_ended() { ! lives apiserver; }
# What this machine's programs send to the API server is lost, and what it answers. The nodes have another address.
cut_clients() { # -I or -D
    iptables -w "$1" INPUT -p tcp -d 127.0.0.1 --dport 16443 -j DROP
    iptables -w "$1" INPUT -p tcp -s 127.0.0.1 --sport 16443 -j DROP
}

start_node() { # NODE
    local node=$1 name=n$1 home=$RUN/n$1 controller archive
    mkdir -p "$home/cni" "$home/kubelet"
    if [[ ! -e /run/netns/$PREFIX-$name ]]; then
        ip netns add "$PREFIX-$name"
        ip link add "${PREFIX}v$node" type veth peer name eth0 netns "$PREFIX-$name"
        ip link set "${PREFIX}v$node" master ${PREFIX}br up
        within "$node" sh -c "ip link set lo up; ip addr add 10.250.0.1$node/24 dev eth0; ip link set eth0 up; ip route add default via 10.250.0.1"
        ip route add "10.251.$node.0/24" via "10.250.0.1$node"
    fi
    cat >"$home/cni/10.conflist" <<JSON
{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,
"hairpinMode":true,"ipam":{"type":"host-local","dataDir":"$home/ipam","ranges":[[{"subnet":"10.251.$node.0/24"}]],
"routes":[{"dst":"0.0.0.0/0"}]}}]}
JSON
    cat >"$home/containerd.toml" <<TOML
version = 2
root = "$home/ctd"
state = "$home/ctd-state"
[grpc]
  address = "$home/ctd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/rlm-cluster/pause:1"
  restrict_oom_score_adj = true
  stream_idle_timeout = "$STREAM_IDLE"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$BIN/cni"
    conf_dir = "$home/cni"
TOML
    lives "containerd-$name" || start "containerd-$name" nsenter "--net=/run/netns/$PREFIX-$name" containerd --config "$home/containerd.toml"
    for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller$PREFIX-$name" 2>/dev/null || true; done
    if [[ -d /sys/fs/cgroup/cpuset ]]; then
        cat /sys/fs/cgroup/cpuset/cpuset.cpus >"/sys/fs/cgroup/cpuset/$PREFIX-$name/cpuset.cpus"
        cat /sys/fs/cgroup/cpuset/cpuset.mems >"/sys/fs/cgroup/cpuset/$PREFIX-$name/cpuset.mems"
    fi
    wait_for 60 "containerd of node $node" ctr -a "$home/ctd.sock" version
    if [[ ! -e $home/imported ]]; then
        for archive in "$STATE"/images/*.tar; do ctr -a "$home/ctd.sock" -n k8s.io images import "$archive" >/dev/null; done
        touch "$home/imported"
    fi
    cat >"$home/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$PREFIX-$name
failSwapOn: false
address: 0.0.0.0
healthzBindAddress: 127.0.0.1
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
makeIPTablesUtilChains: false
podPidsLimit: 1024
streamingConnectionIdleTimeout: $STREAM_IDLE
volumePluginDir: $home/volumes
YAML
    lives "kubelet-$name" || start "kubelet-$name" nsenter "--net=/run/netns/$PREFIX-$name" "$BIN/kube" kubelet \
        --config="$home/kubelet.yaml" --kubeconfig="$RUN/kubeconfig-nodes" --hostname-override="$name" \
        --node-ip="10.250.0.1$node" --root-dir="$home/kubelet" --cert-dir="$home/certs" --container-runtime=remote \
        --container-runtime-endpoint="unix://$home/ctd.sock" --image-service-endpoint="unix://$home/ctd.sock" \
        --seccomp-profile-root="$home/seccomp"
}

# As if the machine had lost its power: kubelet, containerd, shims and every process of its pods, by pid.
kill_node() { # NODE
    local node=$1 pid
    stop "kubelet-n$node"
    stop "containerd-n$node"
    for pid in $(grep -lzaF -- "$RUN/n$node/ctd.sock" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3); do
        case $(cat "/proc/$pid/comm" 2>/dev/null) in containerd-shim*) kill -9 "$pid" ;; esac
    done
    for _ in 1 2 3; do
        for pid in $(find "/sys/fs/cgroup/pids/$PREFIX-n$node" -name cgroup.procs -exec cat {} + 2>/dev/null); do
            kill -9 "$pid" 2>/dev/null || true
        done
        sleep 0.2
    done
}

up() { # NODES
    local nodes=$1 path node waiting=()
    echo "$nodes" >nodes
    for path in "${FIXED[@]}"; do [[ -e $path ]] || echo "$path"; done >ours
    ip netns list | cut -d' ' -f1 >netns.before
    sysctl -n "${SYSCTLS[@]}" >sysctl.before
    ip link add ${PREFIX}br type bridge
    ip addr add 10.250.0.1/24 dev ${PREFIX}br
    ip link set ${PREFIX}br up
    iptables -w -I FORWARD -i ${PREFIX}br -j ACCEPT
    iptables -w -I FORWARD -o ${PREFIX}br -j ACCEPT
    openssl genrsa -out sa.key 2048 2>/dev/null
    (umask 077; openssl rand -hex 16 >token; echo "$(<token),admin,1,system:masters" >tokens.csv
        kubeconfig 127.0.0.1 >kubeconfig; kubeconfig 10.250.0.1 >kubeconfig-nodes)
    start etcd "$BIN/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 \
        --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 \
        --initial-cluster default=http://127.0.0.1:12380
    start_api
    start controllers "$BIN/kube" kube-controller-manager --kubeconfig=kubeconfig-nodes \
        --service-account-private-key-file=sa.key --use-service-account-credentials=false --allocate-node-cidrs=true \
        --cluster-cidr=10.251.0.0/16 --configure-cloud-routes=false --leader-elect=false \
        --feature-gates=TTLAfterFinished=true --root-ca-file="$RUN/certs/apiserver.crt" --bind-address=127.0.0.1 \
        "--node-monitor-grace-period=${RLM_CONTAINERS_CLUSTER_GRACE:-16}s" --node-monitor-period=2s --pod-eviction-timeout=5s
    start scheduler "$BIN/kube" kube-scheduler --kubeconfig=kubeconfig-nodes --leader-elect=false --bind-address=127.0.0.1
    for ((node = 1; node <= nodes; node++)); do
        start_node "$node" &
        waiting+=($!)
    done
    for node in "${waiting[@]}"; do wait "$node"; done
    export KUBECONFIG=$RUN/kubeconfig
    wait_for 120 "a node" nodes_are_ready "$nodes"
    wait_for 60 "the service account" kubectl get serviceaccount default
}
nodes_are_ready() { [[ $(kubectl get nodes --no-headers | grep -c ' Ready') == "$1" ]]; }

down() {
    local part node name mount_point
    [[ -e $RUN/nodes ]] || return 0
    # SIGTERM takes them a minute.
    for part in controllers scheduler apiserver etcd; do stop "$part"; done
    for ((node = 1; node <= $(<nodes); node++)); do kill_node "$node"; done
    grep -F " $RUN/" /proc/mounts | cut -d' ' -f2 | sort -r | while read -r mount_point; do
        umount "$mount_point" 2>/dev/null || umount -l "$mount_point"
    done || true
    for ((node = 1; node <= $(<nodes); node++)); do
        ip netns del "$PREFIX-n$node" || true
        find /sys/fs/cgroup/*/"$PREFIX-n$node" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    for name in $(ip netns list | cut -d' ' -f1 | grep '^cni-' || true); do
        grep -qx "$name" netns.before || ip netns del "$name"
    done
    [[ ! -s ours ]] || xargs rm -rf <ours
    ip link del ${PREFIX}br || true
    while cut_clients -D; do :; done 2>/dev/null
    iptables -w -D FORWARD -i ${PREFIX}br -j ACCEPT || true
    iptables -w -D FORWARD -o ${PREFIX}br -j ACCEPT || true
    local values i
    mapfile -t values <sysctl.before
    for i in "${!SYSCTLS[@]}"; do sysctl -q "${SYSCTLS[$i]}=${values[$i]}"; done
    cd "$STATE"
    rm -rf "$RUN"
}

case $1 in
up) up "$2" ;;
down) down ;;
stop-api) stop apiserver ;;
end-api) end_api ;;
start-api) start_api ;;
stop-kubelet) stop "kubelet-n$2" ;;
stop-containerd) stop "containerd-n$2" ;;
cut) ip link set "${PREFIX}v$2" down ;;
heal) ip link set "${PREFIX}v$2" up ;;
cut-clients) cut_clients -I ;;
heal-clients) cut_clients -D ;;
start-node) start_node "$2" ;;
kill-node) kill_node "$2" ;;
*) echo "there is no fault $1" >&2; exit 2 ;;
esac
