# What this file can do.
default:
    @just --list --unsorted

# Builds the appliance's and the initiator's images (minutes the first time, seconds afterwards).
image *args:
    cargo build --release --package orlopd
    image/build.sh {{ args }}

# Starts the appliance in QEMU and says how to reach it. Ctrl-C powers it off.
boot *args:
    cargo run --quiet --package orlop-image -- boot {{ args }}

# Runs everything: units, API suite, pool contracts on real file systems, and beside them guests in QEMU.
test: image
    #!/usr/bin/env bash
    set -euo pipefail
    # The same features for all of it, so that nothing is compiled twice.
    suite() { cargo test --workspace --all-features "$@"; }
    units() { suite --lib --bins --test api --test pool_model --test torture --test shim --test evictor && suite --doc; }
    real() { {{ as_root }} cargo test --workspace --all-features --test pool_contract --test hostile_tools; }
    chart() { tests/chart/chart.sh check; }
    # All of it first: a compiler beside the guests would slow them down.
    suite --no-run
    # A process group of its own, which ends as a whole if this does.
    set -m
    suite --test system >target/guests.log 2>&1 &
    guests=$!
    set +m
    trap 'kill -- "-$guests" 2>/dev/null || true' EXIT
    failed=
    for part in units real chart; do "$part" || failed="$failed $part"; done
    # What the guests have printed meanwhile, and what comes.
    tail --pid="$guests" --lines=+1 --follow target/guests.log
    wait "$guests" || failed="$failed guests"
    trap - EXIT
    [ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }

# What takes too long for each change: the whole of libiscsi's tests, 500 backups, 200 power cuts, and the driver's image.
test-long: image
    shim/image.sh && python3 tests/chart/image.py target/orlop-csi.oci.tar
    cargo test --workspace --all-features --test system -- pools_are_made the_whole_of_libiscsis_tests five_hundred_backups
    cargo build --quiet --workspace --all-features --bins
    "${CARGO_TARGET_DIR:-target}/debug/torture" --cuts 200 --faults power-cut

# Loop devices and mounts of the pools' contract need root; nothing else does.
as_root := if `id -u` == "0" { "" } else { "env CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E'" }

# The main job, for people who watch. Leaves the appliance running until Ctrl-C; `--exit` ends it.
demo *args: image
    cargo build --quiet --package orlop-tests --bin demo --bin stream
    cargo run --quiet --package orlop-tests --bin demo -- {{ args }}

# Measures, beside the bare tools in the same run: target/bench/results.json and a table.
bench *args: image
    cargo build --release --package orlopd --features contract --bin pool-contract --bin target-bench
    cargo build --release --package orlop-csi --bin orlop-csi
    cargo run --quiet --release --package orlop-tests --bin bench -- {{ args }}

# Random operations from a seed while power, daemon, disks, journal and network fail: `just torture --help`.
torture *args: image
    cargo build --quiet --workspace --all-features --bins
    "${CARGO_TARGET_DIR:-target}/debug/torture" {{ args }}

# The driver of Kubernetes as an OCI image: target/orlop-csi.oci.tar.
shim-image *args:
    shim/image.sh {{ args }}

# Makes shim/manifests of the Helm chart in shim/chart.
chart:
    tests/chart/chart.sh write

# What a commit must pass.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-features --all-targets -- -D warnings
