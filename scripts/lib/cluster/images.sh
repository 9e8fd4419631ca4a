# For scripts/setup-cluster: the images of the cluster as files, from docker's store.
set -euo pipefail
SCRIPTS=$1
PREFIX=localhost/rlm-containers
mkdir -p "$STATE/images" "$STATE/pause/root"
gcc -static -Os -s -o "$STATE/pause/root/pause" "$SCRIPTS/lib/cluster/pause.c"
tar -C "$STATE/pause/root" -c . | docker import -c 'ENTRYPOINT ["/pause"]' - rlm-cluster/pause:1
docker save rlm-cluster/pause:1 -o "$STATE/images/pause.tar"
docker rmi rlm-cluster/pause:1
make_image() {
    docker image inspect "$1" >/dev/null 2>&1 || "$SCRIPTS/build-base-image" --runtime docker --tag "$@"
}
make_image "$PREFIX/python:3.11-slim-compiled" --python 3.11 --compiled
make_image "$PREFIX/python:3.8-slim" --python 3.8
make_image "$PREFIX/no-python:latest" --variant no-python
docker save "$PREFIX/python:3.11-slim-compiled" "$PREFIX/python:3.8-slim" "$PREFIX/no-python:latest" \
    -o "$STATE/images/python.tar"
