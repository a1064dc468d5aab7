#!/usr/bin/env bash
# Runs everything that a change must pass, from a fresh clone on Debian: system packages, environment, static checks, tests.
#
#   bash tests/run.sh [PYTEST ARGUMENTS]
#
# PYTHON            the interpreter for the environment (default python3; 3.11 or newer)
# HILUM_TEST_DATA   folder of real images; without it the tests that need them are skipped, and the summary says so
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
started=$SECONDS

# What the tests start or read with, and why: real peers, alert rules, an SR validator, pictures of the report, a network of their own.
packages=(dcmtk orthanc orthanc-dicomweb prometheus libpixelmed-java default-jre-headless poppler-utils iproute2 procps)

say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
}

# Debian starts a service as soon as it is installed, on every address; this keeps Orthanc and Prometheus still.
install_quietly() {
  local as_root=$1 policy=/usr/sbin/policy-rc.d ours=
  shift
  if [[ ! -e $policy ]]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
  fi
  local status=0
  { $as_root apt-get -qq update &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null; } || status=$?
  [[ -z $ours ]] || $as_root rm -f "$policy"
  return "$status"
}

system_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "This is not Debian: nothing is installed here. The tests need, by the names of Debian: ${packages[*]}"
    return
  fi
  local wanted as_root=
  "$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
  mapfile -t wanted < <(missing_packages)
  ((${#wanted[@]})) || return 0
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      echo "Missing system packages, and neither root nor sudo to install them: apt-get install ${wanted[*]}" >&2
      exit 1
    fi
    as_root=sudo
  fi
  echo "installing ${wanted[*]}"
  install_quietly "$as_root" "${wanted[@]}"
}

environment() {
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
  [[ -x .venv/bin/python ]] || "$python" -m venv .venv
  .venv/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[openvino,train,dev]'
  # pynetdicom brings scripts with the names of DCMTK's programs: a test "against DCMTK" would test pynetdicom.
  (cd .venv/bin && rm -f echoscp echoscu findscu getscu movescu qrscp storescp storescu)
  export PATH="$PWD/.venv/bin:$PATH"
}

static_checks() {
  ruff check .
  ruff format --check .
  mypy
  lint-imports --no-cache
  promtool check rules deploy/prometheus/rules.yml
  promtool test rules deploy/prometheus/rules_test.yml
  promtool check config --syntax-only deploy/prometheus/prometheus.yml
  python -m node.dicom.conformance --check
}

say "system packages"
system_packages
say "environment"
environment
say "static checks"
static_checks
say "tests"
if [[ -n ${HILUM_TEST_DATA:-} ]]; then
  echo "real images: $HILUM_TEST_DATA"
else
  echo "NO REAL IMAGES: HILUM_TEST_DATA is not set; every test marked 'data' is skipped."
fi
exec python -m pytest --durations=15 "$@"
