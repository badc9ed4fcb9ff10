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

# Runs everything: units, API suite, pool contracts on real file systems, and guests in QEMU.
test: image
    cargo build --workspace --all-features
    cargo test --package orlop-api --package orlop-image --all-features
    cargo test --package orlopd --all-features --lib --bins --test api --test pool_model
    {{ as_root }} cargo test --package orlopd --all-features --test pool_contract --test hostile_tools
    cargo test --package orlop-tests

# Loop devices and mounts of the pools' contract need root; nothing else does.
as_root := if `id -u` == "0" { "" } else { "env CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='sudo -E'" }

# The main job, for people who watch. Leaves the appliance running until Ctrl-C; `--exit` ends it.
demo *args: image
    cargo run --quiet --package orlop-tests --bin demo -- {{ args }}

# Measures, beside the bare tools in the same run: target/bench/results.json and a table.
bench *args: image
    cargo run --quiet --release --package orlop-tests --bin bench -- {{ args }}

# What a commit must pass.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-features --all-targets -- -D warnings
