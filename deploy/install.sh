#!/bin/sh
# Installs Hilum into a Debian system: the image of the Dockerfile, a virtual machine, or a bare root folder. Run as root.
#
#   install.sh packages                    what Hilum needs of Debian
#   install.sh application SOURCE [gpu]    Hilum in /opt/hilum, a virtual environment; gpu: torch with CUDA, and TensorRT
#   install.sh account                     user hilum (10001), /etc/hilum for the configuration, /var/lib/hilum for the data
set -eu

target=/opt/hilum

packages() {
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install python3 python3-venv ca-certificates tzdata
  rm -rf /var/lib/apt/lists/*
}

application() {
  source=$1
  python3 -m venv "$target"
  if [ "${2:-cpu}" = gpu ]; then
    "$target/bin/pip" install -qq --no-cache-dir --disable-pip-version-check "$source[openvino,tensorrt]"
  else
    "$target/bin/pip" install -qq --no-cache-dir --disable-pip-version-check -c "$source/constraints.txt" "$source[openvino]"
  fi
  # pynetdicom's example programs: one of them writes where a peer tells it to, and none of them is needed.
  (cd "$target/bin" && rm -f echoscp echoscu findscu getscu movescu qrscp storescp storescu)
}

account() {
  getent group hilum >/dev/null || groupadd --system --gid 10001 hilum
  id hilum >/dev/null 2>&1 ||
    useradd --system --uid 10001 --gid hilum --home-dir /var/lib/hilum --no-create-home --shell /usr/sbin/nologin hilum
  install -d -m 755 /etc/hilum
  install -d -m 700 -o hilum -g hilum /var/lib/hilum
}

case ${1:-} in
  packages) packages ;;
  application) shift; application "$@" ;;
  account) account ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
