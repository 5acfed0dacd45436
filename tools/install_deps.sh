#!/usr/bin/env bash
# Installs the Debian packages that Cadre builds and runs with; does nothing where all are present.
# --fuzz adds clang and its run-time libraries, for the preset `fuzz`; --starters Slurm and Open MPI, for
# tests/e2e/starters_test.py; --browser Chromium, for tests/e2e/chat_page_test.py.
set -euo pipefail

packages=(
  g++ cmake ninja-build mold ccache pkg-config git python3
  libdnnl-dev libhwy-dev libprotobuf-dev protobuf-compiler libabsl-dev libspdlog-dev libfmt-dev
  libboost1.81-dev libyaml-cpp-dev libcli11-dev libpcre2-dev libsimdjson-dev nlohmann-json3-dev
  prometheus-cpp-dev libxxhash-dev libzstd-dev libutf8proc-dev libssl-dev libcurl4-openssl-dev zlib1g-dev
  libucx-dev libgrpc++-dev protobuf-compiler-grpc
  libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev
  bible-kjv curl zstd openssl haproxy
)
for flag in "$@"; do
  case $flag in
    --fuzz) packages+=(clang libclang-rt-14-dev libomp-dev) ;;
    --starters) packages+=(slurm-wlm munge openmpi-bin) ;;
    --browser) packages+=(chromium fonts-dejavu-core) ;;
    *) echo "error: unknown option $flag; --fuzz, --starters and --browser are there" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then exit 0; fi

echo "installing: ${missing[*]}"
sudo=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "error: run as root once, or install: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
