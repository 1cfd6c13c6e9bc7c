# shellcheck shell=bash
# What the scripts need from Debian: programs installed when they are missing, and single packages fetched
# without being installed. Sourced by deploy/quickstart.sh and everything under tests/; defines functions only.
#
# Everything fetched stays in $CAISSON_CACHE, so that a second run needs no network.

CAISSON_CACHE=${CAISSON_CACHE:-$HOME/.cache/caisson-tests}

# debian_quietly COMMAND...: runs it silently; shows its last lines only when it fails.
debian_quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        echo "failed ($status): $*" >&2
        tail -n 15 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# debian_update: refreshes apt's lists at most once per process tree.
debian_update() {
    [ -n "${CAISSON_APT_UPDATED:-}" ] && return 0
    debian_quietly apt-get -q update || return 1
    export CAISSON_APT_UPDATED=1
}

# debian_need PACKAGE...: installs those packages that are not installed yet.
debian_need() {
    local package missing=()
    for package in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
            installed) ;;
            *) missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing Debian packages: ${missing[*]} (run as root, or install them first)" >&2
        return 1
    fi
    echo "installing from Debian: ${missing[*]}" >&2
    debian_update || return 1
    # A containerd that a package installs must not start on its own: everything here runs private instances.
    local policy=/usr/sbin/policy-rc.d made_policy=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made_policy=1
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive debian_quietly \
        apt-get -q -y --no-install-recommends install "${missing[@]}" || status=$?
    [ -z "$made_policy" ] || rm -f "$policy"
    return "$status"
}

# debian_mirror: prints the base address of the Debian mirror that this machine's apt uses.
debian_mirror() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian|Debian|//p' | head -n 1
}

# debian_apt SUITE APT-TOOL ARGUMENT...: runs an apt tool on a private configuration that knows just SUITE
# (source-SUITE: just that suite's sources).
debian_apt() {
    local suite=$1 base mirror
    shift
    base=$CAISSON_CACHE/apt-$suite
    if [ ! -e "$base/ready" ]; then
        mirror=$(debian_mirror)
        [ -n "$mirror" ] || { debian_update; mirror=$(debian_mirror); }
        [ -n "$mirror" ] || return 1
        rm -rf "$base"
        mkdir -p "$base"/{state/lists/partial,cache/archives/partial,etc/preferences.d,etc/apt.conf.d}
        : >"$base/status"
        local kind=deb
        [ "$suite" = "${suite#source-}" ] || kind=deb-src
        echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror ${suite#source-} main" \
            >"$base/etc/sources.list"
        debian_private_apt "$base" apt-get -q update >"$base/log" 2>&1 || return 1
        ! grep -qE '^(E|Err|W: Failed)' "$base/log" || return 1
        : >"$base/ready"
    fi
    debian_private_apt "$base" "$@"
}

debian_private_apt() {
    local base=$1 tool=$2
    shift 2
    "$tool" -o Dir::State="$base/state" -o Dir::State::status="$base/status" -o Dir::Cache="$base/cache" \
        -o Dir::Etc="$base/etc" -o Dir::Etc::sourcelist="$base/etc/sources.list" -o Dir::Etc::sourceparts=- \
        -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=0 "$@"
}

# debian_deb SUITE PACKAGE: prints the path of the package's .deb, fetched once into the cache.
# SUITE "-" means whatever this machine's own apt offers. Fails when the mirror does not serve it.
debian_deb() {
    local suite=$1 package=$2 store found
    store=$CAISSON_CACHE/debs/$suite
    mkdir -p "$store"
    found=$(find "$store" -maxdepth 1 -name "${package}_*.deb" | sort | tail -n 1)
    if [ -z "$found" ]; then
        if [ "$suite" = - ]; then
            (cd "$store" && { debian_fetch apt-get "$package" || { debian_update && debian_fetch apt-get "$package"; }; }) || return 1
        else
            # Lists that were cached a while ago may name a version that is gone: fetch them anew once.
            (cd "$store" && { debian_fetch debian_apt "$suite" apt-get "$package" || {
                rm -f "$CAISSON_CACHE/apt-$suite/ready"
                debian_fetch debian_apt "$suite" apt-get "$package"
            }; }) || return 1
        fi
        found=$(find "$store" -maxdepth 1 -name "${package}_*.deb" | sort | tail -n 1)
    fi
    [ -n "$found" ] && echo "$found"
}

debian_fetch() {
    local package=${*: -1}
    "${@:1:$#-1}" -q -o APT::Sandbox::User=root download "$package" >/dev/null 2>&1
}

# debian_source PACKAGE: prints the path of the upstream source archive of Debian 12's package, fetched once.
debian_source() {
    local store=$CAISSON_CACHE/sources found
    mkdir -p "$store"
    found=$(find "$store" -maxdepth 1 -name "$1_*.orig.tar.*" ! -name '*.asc' | sort | tail -n 1)
    if [ -z "$found" ]; then
        (cd "$store" && debian_apt source-bookworm apt-get -q --download-only source "$1" >/dev/null 2>&1) || return 1
        found=$(find "$store" -maxdepth 1 -name "$1_*.orig.tar.*" ! -name '*.asc' | sort | tail -n 1)
    fi
    [ -n "$found" ] && echo "$found"
}

# debian_unpacked SUITE PACKAGE: prints a directory with the package's files, unpacked beside, not installed.
debian_unpacked() {
    local deb tree
    deb=$(debian_deb "$1" "$2") || return 1
    tree=$CAISSON_CACHE/unpacked/$(basename "$deb" .deb)
    if [ ! -d "$tree" ]; then
        mkdir -p "$CAISSON_CACHE/unpacked"
        rm -rf "$tree.part"
        dpkg-deb -x "$deb" "$tree.part" && mv "$tree.part" "$tree" || return 1
    fi
    echo "$tree"
}
