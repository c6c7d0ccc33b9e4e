#!/bin/sh
# Builds the library for a NetBSD/amd64 kernel and puts what the kernel's build takes into a folder: xenpv.o, xenpv.h, the glue.
#
#	usage: netbsd/build.sh FOLDER		FOLDER: sys/external/bsd/xenpv of a source tree
#
# LD, OBJCOPY and SIZE may name other tools than the system's, such as those of a cross toolchain. The library itself stays where
# cargo puts it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: netbsd/build.sh FOLDER}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"

# Would take the place of the flags that the target needs.
unset RUSTFLAGS
target=x86_64-unknown-none
cargo rustc --locked --quiet --profile kernel --package xenpv --target $target --crate-type staticlib
library=${CARGO_TARGET_DIR:-../target}/$target/kernel/libxenpv.a

# One object with nothing in it that is not called: every function of the header is a root, and no other name is seen by the kernel,
# which has functions of the same names as the compiler's own (memcpy, log).
roots=$(sed -n 's/^[a-z].*[ *]\(xenpv_[a-z0-9_]*\)(.*/\1/p' include/xenpv.h)
${LD:-ld} -r --gc-sections -T prelink.ld $(printf ' -u %s' $roots) -o "$out/xenpv.o" "$library"
${OBJCOPY:-objcopy} --wildcard --keep-global-symbol='xenpv_*' --strip-debug "$out/xenpv.o"

# Newer than before, so that make(1) links the kernel again: it doesn't look at the object.
cp include/xenpv.h glue/* "$out"
${SIZE:-size} "$out/xenpv.o"
