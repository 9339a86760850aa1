#!/usr/bin/env bash
# Installs the Debian packages that `make bench-delivery` compares with, and its SFTP server.
# Where that is not possible it says what is missing; the comparison with the shell pipeline is then skipped.
set -euo pipefail

declare -A package_of=([zip]=zip [curl]=curl [sftp]=openssh-client [sshd]=openssh-server)

missing=()
for program in "${!package_of[@]}"; do
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "Missing, and installing it takes root on Debian or Ubuntu: ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # package scripts then start no service
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
