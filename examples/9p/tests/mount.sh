#!/usr/bin/env bash
# The server against the Linux kernel's own client: copies trees in and out, and tries to break out.
#
#   examples/9p/tests/mount.sh [COMMAND...]
#
# Mounts need root, and a kernel with 9p over TCP (Debian's modules 9p and 9pnet_fd). COMMAND, if
# given, runs its arguments with both: sudo, or whatever runs a command in a virtual machine that
# sees these files. Without root or 9p it says so, and does nothing.
set -euo pipefail

script=$(realpath "${BASH_SOURCE[0]}")
if [[ ${1:-} != --server ]]; then
    cd "$(dirname "$script")/../../.."
    cargo build --quiet -p kcm-example-9p --bin 9p
    exec "$@" "$script" --server "$(realpath "${CARGO_TARGET_DIR:-target}")/debug/9p"
fi
server=$2

skip() {
    echo "skipped: $1" >&2
    exit 0
}
[[ $EUID -eq 0 ]] || skip "only root can mount (try: $script sudo)"
modprobe -a 9p 9pnet_fd 2>/dev/null || true
grep -qw 9p /proc/filesystems || skip "this kernel has no 9p, and no module of that name"

work=$(mktemp -d)
export LC_ALL=C
pids=()
mounts=()
clean_up() {
    local at
    for at in ${mounts[@]+"${mounts[@]}"}; do umount "$at" 2>/dev/null || true; done
    for at in $(jobs -p); do kill "$at" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean_up EXIT

checks=0
ok() { # NAME
    checks=$((checks + 1))
    echo "ok: $1 ($SECONDS s)"
}
fail() {
    echo "FAILED: $1" >&2
    exit 1
}
# fails_with TEXT COMMAND...: the command fails and says why.
fails_with() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then fail "should fail: $*"; fi
    [[ $said == *"$text"* ]] || fail "'$*' should say '$text', and says: $said"
}

# serve NAME [OPTION...]: a server of $work/NAME; its port is in $port.
serve() {
    local name=$1 address
    shift
    mkfifo "$work/address"
    "$server" --listen 127.0.0.1:0 "$@" "$work/$name" >"$work/address" &
    pids+=($!)
    read -r address <"$work/address"
    rm "$work/address"
    port=${address##*:}
}
# attach DIRECTORY OPTIONS
attach() {
    mkdir -p "$1"
    mount -t 9p -o "trans=tcp,port=$port,version=9p2000.L,$2" 127.0.0.1 "$1"
    mounts+=("$1")
}
# refused ERROR PATH: that part of the export cannot be mounted. (mount has texts of its own for errors.)
refused() {
    python3 - "$work/mount" "trans=tcp,port=$port,version=9p2000.L,aname=$2" "$1" <<'PYTHON' || fail "mounting $2"
import ctypes, errno, sys
directory, options, error = (text.encode() for text in sys.argv[1:])
system = ctypes.CDLL(None, use_errno=True)
assert system.mount(b"127.0.0.1", directory, b"9p", 0, options) == -1, "mounted"
told = errno.errorcode[ctypes.get_errno()]
assert told == error.decode(), told
PYTHON
}
# All that cp -a keeps, line by line. (Of times the seconds: the kernel's client knows no smaller part.)
list() {
    (cd "$1" && find . -printf '%P|%y|%m|%U|%G|%n|%l|%Ts|' \( -type d -printf '\n' -o -printf '%s\n' \) | sort)
}
same() {
    # (diff takes any two FIFOs for different.)
    diff -r --no-dereference --exclude=fifo "$1" "$2" >"$work/differences" ||
        fail "contents differ: $1 $2: $(head -n 5 "$work/differences")"
    diff <(list "$1") <(list "$2") >"$work/differences" ||
        fail "attributes differ: $1 $2: $(head -n 5 "$work/differences")"
}

tree=$work/tree
make_tree() {
    local at long
    mkdir -p "$tree/deep"/{a,b}/c/d/e "$tree/empty" "$tree/many"
    # More names than one message of 8 KiB holds.
    long=$(printf 'n%.0s' {1..200})
    for at in {1..100}; do echo "small $at" >"$tree/many/$at-$long"; done
    head -c 6000000 /dev/urandom >"$tree/large"
    : >"$tree/nothing"
    truncate -s 5000000 "$tree/sparse"
    printf 'end' >>"$tree/sparse"
    for at in 400 444 600 644 755 4755 2755; do
        echo "$at" >"$tree/mode-$at"
        chmod "$at" "$tree/mode-$at"
    done
    mkdir -m 1777 "$tree/sticky"
    ln -s large "$tree/link"
    ln -s ../../outside/secret "$tree/deep/link-out"
    ln -s /nowhere/at/all "$tree/link-dangling"
    ln "$tree/mode-644" "$tree/hard"
    mkfifo "$tree/fifo"
    echo 1 >"$tree/with space"
    echo 2 >"$tree/$(printf 'new\nline')x"
    echo 3 >"$tree/$(printf '\377\376')"
    echo 4 >"$tree/$(printf 'n%.0s' {1..255})"
    chown 12:34 "$tree/mode-600"
    chown -h 56:78 "$tree/link"
    touch -d '2001-02-03 04:05:06.123456789' "$tree/nothing"
    find "$tree" -type d -exec touch -d '2005-01-01' {} +
}

copies() { # OPTIONS
    attach "$work/mount" "$1"
    cp -a "$tree" "$work/mount/in"
    same "$tree" "$work/export/in"
    same "$tree" "$work/mount/in"
    cp -a "$work/mount/in" "$work/out"
    same "$tree" "$work/out"
    mkdir "$work/mount/again"
    tar -C "$work/mount/in" -cf - . | tar -C "$work/mount/again" -xf -
    same "$tree" "$work/export/again"
    rm -r "$work/mount/in" "$work/mount/again" "$work/out"
    [[ -z $(ls -A "$work/export") ]] || fail "not all was removed"
    umount "$work/mount"
    ok "a tree in and out, $1"
}

operations() {
    local m=$work/mount
    attach "$m" "cache=none,msize=262144"
    echo one >"$m/a"
    mv "$m/a" "$m/b"
    [[ $(cat "$m/b") == one && ! -e $m/a ]] || fail "rename"
    mkdir "$m/d" && mv "$m/b" "$m/d/" && mv "$m/d" "$m/e"
    [[ $(cat "$m/e/b") == one ]] || fail "rename into a directory, and of it"
    fails_with "Directory not empty" rmdir "$m/e"
    fails_with "File exists" mkdir "$m/e"
    fails_with "No such file" cat "$m/missing"
    truncate -s 2 "$m/e/b"
    [[ $(cat "$m/e/b") == on ]] || fail "truncate"
    exec 5<>"$m/e/b"
    rm "$m/e/b"
    echo more >&5
    exec 5>&-
    python3 - "$m" <<'PYTHON'
import errno, os, sys
m = sys.argv[1]
path = os.path.join(m, "numbers")
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
for at in (0, 100_000, 5, 1 << 33):
    assert os.pwrite(fd, b"x%d" % at, at) == len(b"x%d" % at)
for at in (0, 100_000, 5, 1 << 33):
    assert os.pread(fd, 2, at) == (b"x%d" % at)[:2]
os.fsync(fd), os.fdatasync(fd)
os.fchmod(fd, 0o400)
os.ftruncate(fd, 7)
assert os.fstat(fd).st_size == 7 and os.fstat(fd).st_mode & 0o777 == 0o400
os.close(fd)
try:
    os.open(path, os.O_CREAT | os.O_EXCL)
    raise SystemExit("O_EXCL")
except FileExistsError:
    pass
try:
    os.getxattr(path, "user.x")
    raise SystemExit("getxattr")
except OSError as e:
    assert e.errno in (errno.EOPNOTSUPP, errno.ENODATA), e
assert os.statvfs(m).f_bsize > 0
names = sorted(os.listdir(m))
assert names == ["e", "numbers"], names
try:
    os.mknod(os.path.join(m, "null"), 0o20666, os.makedev(1, 3))
    raise SystemExit("a device was made")
except PermissionError:
    pass
PYTHON
    rm -rf "$m"/*
    ok "operations"
    if command -v git >/dev/null; then
        git -c init.defaultBranch=main init -q "$m/repository"
        cp -r "$tree/deep" "$tree/many" "$m/repository/"
        (cd "$m/repository" && git add . && git -c user.name=n -c user.email=e commit -qm m &&
            git fsck --strict && git clone -q . ../clone && diff -r many ../clone/many) || fail "git"
        rm -rf "$m"/*
        ok "a git repository: commit, fsck, clone"
    fi
    # A device that lies there is looked at, never opened.
    mknod "$work/export/zero" c 1 5
    [[ $(stat -c %F "$m/zero") == "character special file" ]] || fail "a device is shown"
    rm "$work/export/zero"
    umount "$m"
}

permissions() {
    local m=$work/mount nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    attach "$m" "cache=none,access=client"
    chmod 755 "$work"
    echo secret >"$m/mine"
    chmod 600 "$m/mine"
    fails_with "Permission denied" "${nobody[@]}" cat "$m/mine"
    fails_with "Permission denied" "${nobody[@]}" touch "$m/theirs"
    chmod 644 "$m/mine"
    [[ $("${nobody[@]}" cat "$m/mine") == secret ]] || fail "a public file"
    umount "$m"
    ok "permissions"

    serve export --read-only
    attach "$m" "cache=none"
    [[ $(cat "$m/mine") == secret ]] || fail "read-only: reading"
    fails_with "Read-only file system" touch "$m/new"
    fails_with "Read-only file system" mkdir "$m/new"
    fails_with "Read-only file system" rm -f "$m/mine"
    fails_with "Read-only file system" ln -s x "$m/new"
    fails_with "Read-only file system" ln "$m/mine" "$m/new"
    fails_with "Read-only file system" mv "$m/mine" "$m/new"
    fails_with "Read-only file system" chmod 600 "$m/mine"
    fails_with "Read-only file system" truncate -s 0 "$m/mine"
    fails_with "Read-only file system" bash -c "echo x >>$m/mine"
    [[ $(cat "$work/export/mine") == secret ]] || fail "read-only: something was written"
    umount "$m"
    rm "$work/export/mine"
    ok "read-only"
}

escapes() {
    local m=$work/mount swapper at
    mkdir -p "$work/outside"
    echo secret >"$work/outside/secret"
    mkdir -p "$work/export/real"
    echo public >"$work/export/real/secret"
    ln -s ../outside "$work/export/out"
    ln -s "../outside/secret" "$work/export/out-file"
    serve export
    attach "$m" "cache=none"
    # The client follows links on its own side: beside the mount there is another `outside`.
    [[ $(readlink "$m/out") == ../outside ]] || fail "a link's text"
    [[ $(cat "$m/real/secret") == public ]] || fail "a file"
    [[ $(stat -c %i "$m/..") == $(stat -c %i "$work") ]] || fail "above the mount is the client's"
    refused ENOENT /missing
    refused ENOTDIR /out/secret
    refused EINVAL /../outside
    # A directory that becomes a link outside and back, as fast as can be.
    python3 - "$work/export" <<'PYTHON' &
import os, sys
os.chdir(sys.argv[1])
while True:
    os.rename("real", "kept"); os.symlink("../outside", "real")
    os.remove("real"); os.rename("kept", "real")
PYTHON
    swapper=$!
    # Not through links of the client: it would go to its own side.
    python3 - "$m" <<'PYTHON' || fail "came out by a link"
import os, sys, time
seen = {}
end = time.monotonic() + 10
while time.monotonic() < end:
    try:
        directory = os.open(sys.argv[1] + "/real", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        # (Both closed: the client asks the server anew only for names of which it has nothing open.)
        try:
            with open("secret", "rb", opener=lambda path, flags: os.open(
                    path, flags | os.O_NOFOLLOW, dir_fd=directory)) as file:
                text = file.read(99)
        finally:
            os.close(directory)
        assert text == b"public\n", text
        seen["read"] = seen.get("read", 0) + 1
    except OSError as e:
        seen[e.strerror] = seen.get(e.strerror, 0) + 1
assert seen.get("read", 0) > 3 and len(seen) > 1, seen
print(seen)
PYTHON
    kill "$swapper"
    wait "$swapper" 2>/dev/null || true
    umount "$m"
    rm -rf "$work/export"/*
    ok "escapes"
}

concurrent() {
    local m=$work/mount other=$work/other at jobs=()
    attach "$m" "cache=none,msize=65536"
    attach "$other" "cache=none"
    for at in {1..8}; do
        (
            where=$m
            [[ $((at % 2)) -eq 0 ]] && where=$other
            mkdir "$where/$at"
            for round in {1..15}; do
                echo "$at $round" >>"$where/log"
                echo "$round" >"$where/$at/$round"
                mv "$where/$at/$round" "$where/$at/x$round"
                [[ $(cat "$where/$at/x$round") == "$round" ]] || exit 1
                [[ $((round % 3)) -eq 0 ]] && rm "$where/$at/x$round"
                # (A regular file: locks of directories stay with the client.)
                until flock -n "$where/lock" -c "
                    count=\$(cat $where/count 2>/dev/null || echo 0); echo \$((count + 1)) >$where/count" 2>/dev/null
                do sleep 0.01; done
            done
            [[ $(ls "$where/$at" | wc -l) -eq 10 ]]
        ) &
        jobs+=($!)
    done
    dd if=/dev/urandom of="$m/big" bs=1M count=6 status=none &
    jobs+=($!)
    for at in "${jobs[@]}"; do wait "$at" || fail "one of the processes"; done
    [[ $(sort -u "$m/log" | wc -l) -eq 120 && $(wc -l <"$other/log") -eq 120 ]] || fail "a line was lost"
    [[ $(cat "$m/count") == 120 ]] || fail "locks: $(cat "$m/count") of 120"
    cmp "$m/big" "$work/export/big" || fail "the large file"
    cmp "$other/big" "$work/export/big" || fail "the large file, from the other side"
    rm -rf "$m"/*
    umount "$m" "$other"
    ok "concurrent processes on two mounts"
}

mkdir "$work/export"
make_tree
serve export
copies "cache=none,msize=1048576"
operations
concurrent
permissions
escapes
serve export
copies "cache=loose,msize=8192"
for at in "${pids[@]}"; do kill -0 "$at" || fail "a server has ended"; done
echo "$checks checks passed, Linux $(uname -r)"
