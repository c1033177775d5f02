#!/bin/sh
# Installs the Debian or Ubuntu packages that building, testing and the testbed need. Quick when all are there.
set -eu

say() { printf '%s\n' "$*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	say "This is not a Debian or Ubuntu machine: install by hand what deploy/debian-packages.sh lists."
	exit 0
fi

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

missing=
need() { installed "$1" || missing="$missing $1"; }

# A compiler that knows BPF: any clang from 14 on will do, the newest known to build this is preferred.
if ! command -v clang-19 >/dev/null && ! command -v clang >/dev/null; then
	missing="$missing clang-19"
fi
for package in curl etcd-server gcc iproute2 iputils-ping libbpf-dev libbpf1 libc6-dev linux-libc-dev make procps \
	util-linux; do
	need "$package"
done
if [ "$(command -v python3)" = /usr/bin/python3 ]; then
	need python3-venv
fi

[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
	if command -v sudo >/dev/null; then
		as_root=sudo
	else
		say "Missing Debian packages:$missing"
		say "Only root can install them: run 'apt-get install$missing' as root, then try again."
		exit 1
	fi
fi

say "Installing Debian packages:$missing"
# Debian's etcd-server would start a server of its own at once.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
	$as_root chmod +x "$policy"
	made_policy=1
fi
finish() { [ -z "$made_policy" ] || $as_root rm -f "$policy"; }
trap finish EXIT

if ! $as_root apt-get update -q >/dev/null; then
	say "apt-get update failed: is the network up and are the package sources in /etc/apt right?"
	exit 1
fi
case "$missing" in
*clang-19*)
	if ! apt-cache show clang-19 >/dev/null 2>&1; then
		missing=$(printf '%s' "$missing" | sed 's/clang-19/clang/')
	fi
	;;
esac
# shellcheck disable=SC2086
if ! DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -q --no-install-recommends $missing >/dev/null; then
	say "apt-get could not install:$missing"
	exit 1
fi
