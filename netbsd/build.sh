#!/bin/sh
# Builds the library for a NetBSD/amd64 kernel and puts what the kernel's build takes into a folder: xenpv.o, xenpv.h, the glue.
#
#	usage: netbsd/build.sh [FOLDER]		FOLDER: netbsd/out unless given, sys/external/bsd/xenpv of a source tree
#
# LD, OBJCOPY and SIZE may name other tools than the system's, such as those of a cross toolchain.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"

target=x86_64-unknown-none
cargo rustc --locked --quiet --profile kernel --package xenpv --target $target --crate-type staticlib
cp "${CARGO_TARGET_DIR:-../target}/$target/kernel/libxenpv.a" "$out/libxenpv.a"

# One object with nothing in it that is not called: every function of the header is a root, and no other name is seen by the kernel,
# which has functions of the same names as the compiler's own (memcpy, log).
roots=$(sed -n 's/^[a-z].*[ *]\(xenpv_[a-z0-9_]*\)(.*/\1/p' include/xenpv.h)
${LD:-ld} -r --gc-sections -T prelink.ld $(printf ' -u %s' $roots) -o "$out/xenpv.o" "$out/libxenpv.a"
${OBJCOPY:-objcopy} --wildcard --keep-global-symbol='xenpv_*' --strip-debug "$out/xenpv.o"

cp include/xenpv.h glue/* "$out"
${SIZE:-size} "$out/xenpv.o"
