# Shared by the scripts; sourced, never run. Expects the caller to stand at the top of the workspace.

target_dir=${CARGO_TARGET_DIR:-$PWD/target}
peers_dir=${CNI_TEST_PEERS:-$PWD/target/peers}
runtimes_dir=${CNI_TEST_RUNTIMES:-${XDG_CACHE_HOME:-$HOME/.cache}/cni-runtimes}
# A release that was unpacked has no such file.
triple=$(sed -n 's/^target = "\(.*\)"$/\1/p' .cargo/config.toml 2>/dev/null || true)
release_dir=$target_dir/$triple/release
plugins=(bridge host-local-ipam alias-dns)
go_needed=1.24
go_fallback=go1.26.6

# Rust and Go where they are usually put, also for a shell that has not read its profile since.
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Prints the comment at the head of the running script and ends it, where its arguments ask for help.
answer_help() {
    local argument
    for argument in "$@"; do
        case $argument in
        --help | -h)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"
            exit
            ;;
        esac
    done
}

# For a script that takes none.
refuse_arguments() {
    [ $# = 0 ] || die "unknown argument $1; there is --help, or none"
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

install_packages() {
    if ! has apt-get; then
        die "no apt-get here; please install by hand what provides: $*"
    fi
    say "installing packages: $*"
    # Bounded in time, also where another apt-get holds the lock: a test run must not hang here.
    local options=(-qq -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120)
    as_root timeout --foreground 180 apt-get "${options[@]}" update
    as_root timeout --foreground 600 env DEBIAN_FRONTEND=noninteractive \
        apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null
}

go_at_least() {
    local have
    have=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
    [ -n "$have" ] && [ "$(printf '%s\n' "$1" "$have" | sort -V | head -n 1)" = "$1" ]
}

# Prints the Go command that can build the peers.
usable_go() {
    local fetched=$peers_dir/$go_fallback/bin/go
    has go || [ -x "$fetched" ] || install_packages golang-go
    if go_at_least $go_needed; then
        echo go
    elif go_at_least 1.21; then
        echo env GOTOOLCHAIN=auto go
    else
        [ -x "$fetched" ] || fetch_go "$(dirname "$(dirname "$fetched")")"
        echo "$fetched"
    fi
}

# Fetches a newer Go into a directory, as Go itself does since 1.21: as a module.
fetch_go() {
    local module=golang.org/toolchain@v0.0.1-$go_fallback.linux-$(go env GOARCH) unpacked
    say "$(go version) is too old for the reference plugins: fetching $go_fallback with it"
    unpacked=$(timeout --foreground 300 go mod download -json "$module" | jq --raw-output .Dir)
    # Modules are unpacked without the right to write or run them.
    mkdir -p "$1"
    cp -r "$unpacked/." "$1"
    chmod -R u+w "$1"
    chmod 755 "$1"/bin/* "$1"/pkg/tool/*/*
}

build_release() {
    say "building the release binaries (a few minutes the first time, seconds later)"
    cargo build --quiet --release --package bridge --package host-local-ipam --package alias-dns
}

# Makes private namespaces with private /run, /etc and /var/lib, which last until this script ends, however it ends:
# the kernel takes them back when the pipe to their first process closes. in_world then runs commands there.
open_world() {
    cargo build --quiet --package integration-tests --bin world
    world=$target_dir/$triple/debug/world
    coproc WORLD { exec "$world" init; }
    local ready=
    # shellcheck disable=SC2034 # named by the redirections and the trap
    exec {world_life}>&"${WORLD[1]}" {world_news}<&"${WORLD[0]}" {WORLD[1]}>&- {WORLD[0]}<&-
    trap 'exec {world_life}>&-' EXIT
    read -r -u "$world_news" _ world_pid && read -r -u "$world_news" ready || true
    [ "$ready" = ready ] || die "no private namespaces here: run as root, or where user namespaces are allowed"
}

in_world() {
    "$world" enter "$world_pid" host "$@" {world_life}>&- {world_news}<&-
}
