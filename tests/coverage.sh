#!/usr/bin/env bash
# Prints which lines of xbd and of the rings the tests run: those of the crates, and the suite's on the mock. Fails if they are fewer
# than 95 in a hundred. More arguments are for llvm-cov, as in `tests/coverage.sh --show-functions`.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
if ! [ -x "$tools/llvm-cov" ]; then
    echo "llvm-cov is missing: rustup component add llvm-tools" >&2
    exit 1
fi
out=$PWD/target/coverage
rm -rf "$out/raw"
mkdir -p "$out/raw"
export RUSTFLAGS="-Cinstrument-coverage" CARGO_PROFILE_DEV_DEBUG=0 LLVM_PROFILE_FILE="$out/raw/%p-%m.profraw"
tests=(test -q -p xbd -p xenbus -p suite --lib --tests --target-dir "$out/build")
cargo "${tests[@]}"
mapfile -t programs < <(cargo "${tests[@]}" --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
"$tools/llvm-profdata" merge --sparse -o "$out/tests.profdata" "$out"/raw/*.profraw
report=$("$tools/llvm-cov" report "${programs[0]}" "${programs[@]/#/--object=}" "$PWD/xbd/src" "$PWD/xenbus/src/ring" \
    --instr-profile="$out/tests.profdata" --ignore-filename-regex='tests\.rs$' --show-branch-summary=false --show-region-summary=false "$@")
printf '%s\n' "$report"
awk '$1 == "TOTAL" { lines = $NF + 0 } END { exit !(lines >= 95) }' <<<"$report" || {
    echo "fewer than 95 % of the lines are run" >&2
    exit 1
}
