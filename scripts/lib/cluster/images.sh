# For scripts/setup-cluster: the images of the cluster as files, from docker's store. $PROGRAMS has `pause`.
set -euo pipefail
SCRIPTS=$1
PREFIX=localhost/rlm-containers
mkdir -p "$STATE/images.new"
tar -C "$PROGRAMS" -c pause | docker import -c 'ENTRYPOINT ["/pause"]' - rlm-cluster/pause:1
docker save rlm-cluster/pause:1 -o "$STATE/images.new/pause.tar"
docker rmi rlm-cluster/pause:1
make_image() {
    docker image inspect "$1" >/dev/null 2>&1 || "$SCRIPTS/build-base-image" --runtime docker --tag "$@"
}
make_image "$PREFIX/python:3.11-slim-compiled" --python 3.11 --compiled
make_image "$PREFIX/python:3.8-slim" --python 3.8
make_image "$PREFIX/no-python:latest" --variant no-python
docker save "$PREFIX/python:3.11-slim-compiled" "$PREFIX/python:3.8-slim" "$PREFIX/no-python:latest" \
    -o "$STATE/images.new/python.tar"
mv "$STATE/images.new" "$STATE/images"
