#!/bin/sh
# Prints what each driver adds to a kernel, from the library that netbsd/build.sh has left with cargo: all that its functions reach. What
# two drivers share counts for both.
set -eu
cd "$(dirname "$0")"
library=${CARGO_TARGET_DIR:-../target}/x86_64-unknown-none/kernel/libxenpv.a
object=$(mktemp)
trap 'rm -f "$object"' EXIT

printf '%-28s %8s %8s %8s\n' "in bytes" text data bss
for part in xbd cons grant ""; do
	roots=$(sed -n "s/^[a-z].*[ *]\(xenpv_${part}_*[a-z0-9_]*\)(.*/\1/p" include/xenpv.h)
	case $part in
	xbd) name="disk, with the handshake" ;;
	cons) name="console" ;;
	grant) name="grants for C drivers" ;;
	*) name="all" ;;
	esac
	${LD:-ld} -r --gc-sections -T prelink.ld $(printf ' -u %s' $roots) -o "$object" "$library"
	${SIZE:-size} "$object" | awk -v name="$name" 'NR == 2 { printf "%-28s %8d %8d %8d\n", name, $1, $2, $3 }'
done
echo "goal: at most 12288 bytes of text a front end with its handshake"
