#!/bin/sh
# Installs the program from the archive beside this script, for one user or for all: install.sh [PREFIX]
# PREFIX: default ~/.local, or /usr/local for root. `install.sh --remove [PREFIX]` takes everything away again.
set -eu

fail() { echo "install.sh: $1" >&2; exit 1; }

remove=
[ "${1:-}" != --remove ] || { remove=yes; shift; }
if [ "$(id -u)" = 0 ]; then standard=/usr/local; else standard=$HOME/.local; fi
prefix=${1:-$standard}
list=$prefix/share/turbodiffusion/installed.txt

uninstall() {
    [ -f "$list" ] || return 0
    while IFS= read -r file; do rm -f -- "$prefix/$file"; done < "$list"
    rm -f "$list"
    for folder in turbodiffusion/Models/nano turbodiffusion/Models turbodiffusion doc/turbodiffusion/docs doc/turbodiffusion/licenses \
        doc/turbodiffusion; do
        rmdir "$prefix/share/$folder" 2>/dev/null || true
    done
}

if [ -n "$remove" ]; then
    [ -f "$list" ] || fail "nothing is installed in $prefix"
    uninstall
    echo "removed from $prefix"
    exit 0
fi

case $prefix in /*) ;; *) prefix=$PWD/$prefix; list=$prefix/share/turbodiffusion/installed.txt ;; esac
cd "$(dirname "$0")"
archive=turbodiffusion-@VERSION@-linux-x86_64.tar.xz
[ -f "$archive" ] || fail "$archive is not beside this script"

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "expected Linux on x86_64, found $(uname -s) on $(uname -m)"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2) || true
[ -n "$glibc" ] || fail "expected glibc 2.34 or later, found another C library (musl?)"
[ "$(printf '%s\n' 2.34 "$glibc" | sort -V | head -n 1)" = 2.34 ] || fail "expected glibc 2.34 or later, found $glibc"
command -v sha256sum >/dev/null && command -v xz >/dev/null || fail "sha256sum and xz are needed: apt-get install coreutils xz-utils"
grep " $archive\$" SHA256SUMS | sha256sum -c - >/dev/null 2>&1 || fail "$archive is not what SHA256SUMS says: get it again"

mkdir -p "$prefix/share" || fail "$prefix cannot be written"
# Everything is unpacked and has been started before anything that is there is touched.
new=$(mktemp -d "$prefix/share/turbodiffusion.XXXXXX") || fail "$prefix/share cannot be written"
trap 'rm -rf "$new"' EXIT
tar -xJf "$archive" --no-same-owner -C "$new" --strip-components 1 || fail "$archive cannot be unpacked into $prefix"
"$new/bin/turbodiffusion" --version >/dev/null || fail "the program does not start here"
(cd "$new" && find . -type f | sed 's,^\./,,' | LC_ALL=C sort) > "$new.txt"
trap 'rm -rf "$new" "$new.txt"' EXIT
while IFS= read -r file; do
    [ ! -e "$prefix/$file" ] || { [ -f "$list" ] && grep -qxF -- "$file" "$list"; } ||
        fail "$prefix/$file is there and not of this script: remove it, or name another folder than $prefix"
done < "$new.txt"

uninstall
while IFS= read -r file; do
    mkdir -p "$prefix/$(dirname "$file")"
    mv "$new/$file" "$prefix/$file"
done < "$new.txt"
mv "$new.txt" "$list"

echo "installed in $prefix"
case :$PATH: in *:"$prefix/bin":*) ;; *) echo "add $prefix/bin to PATH" ;; esac
command -v ffmpeg >/dev/null || echo "videos need FFmpeg: apt-get install ffmpeg"
