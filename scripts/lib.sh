# Shared by the scripts; sourced, never run. Expects the caller to stand at the top of the workspace.

target_dir=${CARGO_TARGET_DIR:-$PWD/target}
peers_dir=${CNI_TEST_PEERS:-$PWD/target/peers}
triple=$(sed -n 's/^target = "\(.*\)"$/\1/p' .cargo/config.toml)
release_dir=$target_dir/$triple/release
plugins=(bridge host-local-ipam alias-dns)

# Rust and Go where they are usually put, also for a shell that has not read its profile since.
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Runs a command as root, by sudo where needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        die "needs root for: $*"
    fi
}

build_release() {
    say "building the release binaries (a few minutes the first time, seconds later)"
    cargo build --quiet --release --package bridge --package host-local-ipam --package alias-dns
}
