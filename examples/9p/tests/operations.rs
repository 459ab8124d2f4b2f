//! Every operation, its errors, and that nothing outside of the directory is reached.

mod client;

use client::*;
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    sync::atomic::{AtomicBool, Ordering},
};

#[test]
fn files_are_made_written_read_and_cut() {
    let served = Served::new(&[]);
    let mut c = served.client();
    c.create(1, "f");
    assert_eq!(c.write(1, 3, b"hello"), Ok(5));
    assert_eq!(fs::read(served.path("f")).expect("there"), b"\0\0\0hello");
    assert_eq!(c.read(1, 4, 100).expect("open"), b"ello");
    assert_eq!(c.read(1, 99, 100).expect("open"), b"");
    c.ok(TFSYNC, Body::new().u32(1).u32(1));
    c.ok(TFSYNC, Body::new().u32(1));
    // Modes and times of the client; the size by an open fid.
    let set = |fid, valid| Body::new().u32(fid).u32(valid).u32(0o400).u32(0).u32(0);
    let times = |body: Body| body.u64(4).u64(1_000).u64(5).u64(2_000).u64(6);
    c.ok(TSETATTR, times(set(1, 0x1)));
    c.ok(TSETATTR, times(set(1, 0x8 | 0x10 | 0x20 | 0x80 | 0x100)));
    let meta = fs::metadata(served.path("f")).expect("there");
    assert_eq!((meta.len(), meta.mode() & 0o7777), (4, 0o400));
    assert_eq!(
        (meta.atime(), meta.mtime(), meta.mtime_nsec()),
        (1_000, 2_000, 6)
    );
    let attributes = c.ok(TGETATTR, Body::new().u32(1).u64(0x7ff));
    assert_eq!(attributes.len(), 8 + 13 + 4 * 3 + 8 * 15);
    assert_eq!(int(&attributes[21..]), meta.mode());
    assert_eq!(attributes[49..57], meta.len().to_le_bytes());
    assert_eq!(c.ok(TSTATFS, Body::new().u32(0)).len(), 4 + 4 + 8 * 6 + 4);
    assert_eq!(c.clunk(1), Ok(()));
    assert_eq!(c.clunk(1), Err(EBADF));
    assert_eq!(c.open(1, "nothing", 0), Err(ENOENT));
    // Exclusive, or what is there.
    c.walk(0, 2, &[]).expect("the root");
    let create = |flags| Body::new().u32(2).string("f").u32(flags).u32(0o600).u32(0);
    assert_eq!(c.fails(TLCREATE, create(0o200)), EEXIST);
    c.ok(TLCREATE, create(0));
    assert_eq!(c.read(2, 3, 9).expect("open"), b"h");
    assert_eq!(c.write(2, 0, b"x"), Err(EBADF));
}

#[test]
fn appending_fids_append() {
    let served = Served::new(&[]);
    let mut c = served.client();
    fs::write(served.path("log"), "one ").expect("written");
    c.open(1, "log", 0o2001).expect("open");
    assert_eq!(c.write(1, 0, b"two"), Ok(3));
    assert_eq!(fs::read(served.path("log")).expect("there"), b"one two");
    c.open(2, "log", 0o1001).expect("open");
    assert_eq!(
        fs::read(served.path("log")).expect("there"),
        b"",
        "truncated"
    );
}

#[test]
fn names_are_made_linked_renamed_and_removed() {
    let served = Served::new(&[]);
    let mut c = served.client();
    c.ok(TMKDIR, Body::new().u32(0).string("d").u32(0o750).u32(0));
    assert_eq!(
        fs::metadata(served.path("d")).expect("there").mode() & 0o7777,
        0o750
    );
    assert_eq!(
        c.fails(TMKDIR, Body::new().u32(0).string("d").u32(0o750).u32(0)),
        EEXIST
    );
    c.ok(
        TSYMLINK,
        Body::new()
            .u32(0)
            .string("l")
            .string("../outside/secret")
            .u32(0),
    );
    c.walk(0, 1, &["l"]).expect("the link itself");
    assert_eq!(
        c.ok(TREADLINK, Body::new().u32(1)),
        b"\x11\0../outside/secret"
    );
    assert_eq!(c.fails(TLOPEN, Body::new().u32(1).u32(0)), ELOOP);
    let node = |name, mode| {
        Body::new()
            .u32(0)
            .string(name)
            .u32(mode)
            .u32(1)
            .u32(3)
            .u32(0)
    };
    c.ok(TMKNOD, node("fifo", 0o10_644));
    assert!(
        fs::symlink_metadata(served.path("fifo"))
            .expect("there")
            .file_type()
            .is_fifo()
    );
    assert_eq!(c.fails(TMKNOD, node("null", 0o20_666)), EPERM);
    // A FIFO that lies there does not hold a worker up.
    assert_eq!(c.open(9, "fifo", 0), Err(EOPNOTSUPP));
    fs::write(served.path("f"), "text").expect("written");
    c.walk(0, 2, &["f"]).expect("there");
    c.walk(0, 3, &["d"]).expect("there");
    c.ok(TLINK, Body::new().u32(3).u32(2).string("hard"));
    assert_eq!(fs::metadata(served.path("f")).expect("there").nlink(), 2);
    // A link to the symbolic link itself.
    c.ok(TLINK, Body::new().u32(3).u32(1).string("soft"));
    assert!(served.path("d/soft").is_symlink());
    c.ok(TRENAMEAT, Body::new().u32(0).string("f").u32(3).string("g"));
    // By its fid: the server knows where it is now.
    c.ok(TRENAME, Body::new().u32(2).u32(0).string("h"));
    assert!(served.path("h").exists() && !served.path("d/g").exists());
    assert_eq!(
        c.fails(TUNLINKAT, Body::new().u32(0).string("d").u32(0)),
        EISDIR
    );
    assert_eq!(
        c.fails(TUNLINKAT, Body::new().u32(0).string("d").u32(0x200)),
        ENOTEMPTY
    );
    assert_eq!(
        c.fails(TUNLINKAT, Body::new().u32(0).string("d").u32(1)),
        EINVAL
    );
    c.ok(TUNLINKAT, Body::new().u32(3).string("hard").u32(0));
    c.ok(TUNLINKAT, Body::new().u32(3).string("soft").u32(0));
    // Removing frees the fid in any case.
    c.ok(TREMOVE, Body::new().u32(2));
    assert_eq!(c.fails(TREMOVE, Body::new().u32(2)), EBADF);
    c.ok(TREMOVE, Body::new().u32(3));
    assert!(!served.path("h").exists() && !served.path("d").exists());
    c.walk(0, 4, &[]).expect("the root");
    assert_eq!(c.fails(TREMOVE, Body::new().u32(4)), EBUSY);
    assert_eq!(c.fails(TREMOVE, Body::new().u32(4)), EBADF);
}

#[test]
fn a_removed_file_is_found_by_no_other_of_its_name() {
    let served = Served::new(&[]);
    let mut c = served.client();
    c.create(1, "f");
    fs::rename(served.path("f"), served.path("old")).expect("renamed");
    fs::write(served.path("f"), "another").expect("written");
    c.ok(TREMOVE, Body::new().u32(1));
    assert!(served.path("f").exists() && !served.path("old").exists());
    c.create(2, "g");
    fs::remove_file(served.path("g")).expect("removed");
    assert_eq!(c.write(2, 0, b"still open"), Ok(10));
    assert_eq!(
        c.fails(TRENAME, Body::new().u32(2).u32(0).string("h")),
        ENOENT
    );
}

#[test]
fn directories_are_listed_in_pieces() {
    let served = Served::new(&[]);
    let mut c = served.client();
    let mut names: Vec<_> = (0..700)
        .map(|n| format!("a rather long name {n}"))
        .collect();
    names
        .iter()
        .for_each(|name| fs::write(served.path(name), "").expect("written"));
    c.walk(0, 1, &[]).expect("the root");
    assert_eq!(
        c.fails(TREADDIR, read_body(1, 0, 4096)),
        ENOTDIR,
        "not open"
    );
    c.ok(TLOPEN, Body::new().u32(1).u32(0));
    names.extend([".".to_owned(), "..".to_owned()]);
    names.sort();
    for count in [100, 4096, 1 << 20] {
        let mut listed = c.list(1, count);
        listed.sort();
        assert_eq!(listed, names);
    }
    assert_eq!(c.fails(TREADDIR, read_body(1, 0, 20)), EINVAL);
    assert_eq!(c.fails(TREAD, read_body(1, 0, 20)), EISDIR);
    // What is above the root is not told.
    let root = c.ok(TGETATTR, Body::new().u32(0).u64(0x7ff));
    let entries = c.ok(TREADDIR, read_body(1, 0, 1 << 20));
    let mut rest = &entries[4..];
    while !rest.is_empty() {
        let len = usize::from(u16::from_le_bytes([rest[22], rest[23]]));
        if rest[24..24 + len].starts_with(b"..") {
            assert_eq!(rest[5..13], root[13..21]);
        }
        rest = &rest[24 + len..];
    }
    assert_eq!(c.open(2, "a rather long name 7", 0o200_000), Err(ENOTDIR));
}

#[test]
fn locks_hold_among_clients_and_end_with_them() {
    let served = Served::new(&[]);
    let (mut one, mut two) = (served.client(), served.client());
    one.create(1, "f");
    two.open(1, "f", 2).expect("open");
    let lock = |kind, start, len| {
        Body::new()
            .u32(1)
            .u8(kind)
            .u32(0)
            .u64(start)
            .u64(len)
            .u32(7)
            .string("host")
    };
    let get = |kind| {
        Body::new()
            .u32(1)
            .u8(kind)
            .u64(0)
            .u64(0)
            .u32(7)
            .string("host")
    };
    assert_eq!(one.ok(TLOCK, lock(1, 10, 10)), [0]);
    assert_eq!(two.ok(TLOCK, lock(0, 0, 10)), [0]);
    assert_eq!(two.ok(TLOCK, lock(1, 19, 1)), [1], "blocked");
    let held = two.ok(TGETLOCK, get(0));
    assert_eq!(
        (held[0], &held[1..17]),
        (1, &[10, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0][..])
    );
    assert_eq!(two.fails(TLOCK, lock(9, 0, 1)), EINVAL);
    drop(one);
    eventually("its locks go with a client", || {
        let mut three = served.client();
        three.open(1, "f", 2).expect("open");
        three.ok(TLOCK, lock(1, 10, 10)) == [0]
    });
    assert_eq!(two.ok(TLOCK, lock(2, 0, 0)), [0]);
}

#[test]
fn nothing_outside_is_reached() {
    let served = Served::new(&[]);
    let mut c = served.client();
    symlink("../outside", served.path("out")).expect("made");
    symlink(served.outside(), served.path("absolute")).expect("made");
    symlink("/proc/self/root", served.path("magic")).expect("made");
    symlink("../outside/secret", served.path("file")).expect("made");
    symlink("../outside/new", served.path("dangling")).expect("made");
    for bad in [
        "..",
        ".",
        "",
        "/",
        "../outside",
        "out/secret",
        "a\0b",
        "/etc/passwd",
    ] {
        assert_eq!(c.walk(0, 1, &[bad]), Err(EINVAL), "{bad:?}");
        let body = || Body::new().u32(0).string(bad);
        assert_eq!(c.fails(TMKDIR, body().u32(0o755).u32(0)), EINVAL);
        assert_eq!(c.fails(TUNLINKAT, body().u32(0)), EINVAL);
        assert_eq!(c.fails(TSYMLINK, body().string("x").u32(0)), EINVAL);
        assert_eq!(c.fails(TRENAMEAT, body().u32(0).string("x")), EINVAL);
        assert_eq!(
            c.fails(
                TRENAMEAT,
                Body::new().u32(0).string("out").u32(0).string(bad)
            ),
            EINVAL
        );
        assert_eq!(c.fails(TLCREATE, body().u32(1).u32(0o644).u32(0)), EINVAL);
    }
    for link in ["out", "absolute", "magic"] {
        // Only the link is reached: one name of two.
        assert_eq!(c.walk(0, 1, &[link, "secret"]), Ok(1));
        assert_eq!(c.clunk(1), Err(EBADF), "a walk that stops makes no fid");
        c.walk(0, 1, &[link]).expect("the link");
        assert_eq!(c.walk(1, 2, &["secret"]), Err(ENOTDIR));
        assert_eq!(c.fails(TLOPEN, Body::new().u32(1).u32(0)), ELOOP);
        assert_eq!(
            c.fails(TMKDIR, Body::new().u32(1).string("x").u32(0o755).u32(0)),
            ENOTDIR
        );
        let attach = Body::new()
            .u32(5)
            .u32(NOFID)
            .string("")
            .string(format!("{link}/secret"))
            .u32(0);
        assert_eq!(c.fails(TATTACH, attach), ENOTDIR);
        c.clunk(1).expect("a fid");
    }
    assert_eq!(
        c.fails(
            TATTACH,
            Body::new().u32(5).u32(NOFID).string("").string("..").u32(0)
        ),
        EINVAL
    );
    // Not through a link that lies there already, and not by changing one's target.
    for (name, errno) in [("file", ELOOP), ("dangling", ELOOP)] {
        c.walk(0, 1, &[]).expect("the root");
        let create = Body::new()
            .u32(1)
            .string(name)
            .u32(0o1002)
            .u32(0o644)
            .u32(0);
        assert_eq!(c.fails(TLCREATE, create), errno);
        c.clunk(1).expect("a fid");
        c.walk(0, 1, &[name]).expect("the link");
        let set = Body::new()
            .u32(1)
            .u32(0x1)
            .u32(0o777)
            .u32(0)
            .u32(0)
            .raw(&[0; 40]);
        assert_eq!(c.fails(TSETATTR, set), EOPNOTSUPP);
        let set = Body::new()
            .u32(1)
            .u32(0x8)
            .u32(0)
            .u32(0)
            .u32(0)
            .raw(&[0; 40]);
        assert_eq!(c.fails(TSETATTR, set), EINVAL);
        c.clunk(1).expect("a fid");
    }
    assert_eq!(
        fs::read(served.outside().join("secret")).expect("there"),
        b"secret"
    );
    assert_eq!(fs::read_dir(served.outside()).expect("there").count(), 1);
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let served = Served::new(&[]);
    let (real, kept) = (served.path("real"), served.path("kept"));
    fs::create_dir(&real).expect("made");
    fs::write(real.join("secret"), "public").expect("written");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&real, &kept).expect("renamed");
                symlink("../outside", &real).expect("made");
                fs::remove_file(&real).expect("removed");
                fs::rename(&kept, &real).expect("renamed");
            }
        });
        let mut c = served.client();
        let (mut read, mut refused) = (0, 0);
        let begin = std::time::Instant::now();
        while begin.elapsed() < SOON && (read < 50 || refused < 50) {
            match c.walk(0, 1, &["real", "secret"]) {
                Ok(2) => {
                    c.ok(TLOPEN, Body::new().u32(1).u32(0));
                    assert_eq!(c.read(1, 0, 99).expect("open"), b"public");
                    c.clunk(1).expect("a fid");
                    read += 1;
                }
                Ok(1) | Err(ENOENT) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(read > 0 && refused > 0, "{read} {refused}");
    });
}

#[test]
fn a_read_only_server_changes_nothing() {
    let served = Served::new(&["--read-only"]);
    fs::write(served.path("f"), "text").expect("written");
    fs::set_permissions(served.path("f"), fs::Permissions::from_mode(0o644)).expect("set");
    let before = fs::metadata(served.path("f")).expect("there");
    let mut c = served.client();
    c.open(1, "f", 0).expect("open");
    assert_eq!(c.read(1, 0, 9).expect("open"), b"text");
    for flags in [1, 2, 0o1000, 0o2001] {
        assert_eq!(c.open(2, "f", flags), Err(EROFS));
    }
    let at = |fid| Body::new().u32(fid);
    for (kind, body) in [
        (TLCREATE, at(0).string("n").u32(2).u32(0o644).u32(0)),
        (TMKDIR, at(0).string("n").u32(0o755).u32(0)),
        (TSYMLINK, at(0).string("n").string("t").u32(0)),
        (TMKNOD, at(0).string("n").u32(0o10_644).u32(0).u32(0).u32(0)),
        (TLINK, at(0).u32(1).string("n")),
        (TRENAME, at(1).u32(0).string("n")),
        (TRENAMEAT, at(0).string("f").u32(0).string("n")),
        (TUNLINKAT, at(0).string("f").u32(0)),
        (TSETATTR, at(1).u32(0x1).u32(0).u32(0).u32(0).raw(&[0; 40])),
        (TWRITE, write_body(1, 0, b"x")),
        (TREMOVE, at(1)),
    ] {
        assert_eq!(c.fails(kind, body), EROFS, "{kind}");
    }
    // Extended attributes are not for writing, ever.
    let attribute = at(1).string("user.x").u64(1).u32(0);
    assert_eq!(c.fails(TXATTRCREATE, attribute), EOPNOTSUPP);
    let after = fs::metadata(served.path("f")).expect("there");
    assert_eq!(
        (before.ctime_nsec(), before.mode()),
        (after.ctime_nsec(), after.mode())
    );
    assert_eq!(fs::read_dir(served.path("")).expect("there").count(), 1);
}

#[test]
fn a_bad_start_is_said_clearly() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_9p"))
            .args(arguments)
            .output()
            .expect("it starts");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(
        run(&["/no/such"]),
        "9p: cannot serve /no/such: No such file or directory (os error 2)\n"
    );
    assert!(run(&["/dev/null"]).contains("cannot serve /dev/null: Not a directory"));
    assert!(run(&["--listen", "256.0.0.1:1", "/tmp"]).contains("cannot listen on 256.0.0.1:1"));
    assert!(run(&["--msize", "1", "/tmp"]).contains("4096"));
    let many = [
        "--listen",
        "127.0.0.1:0",
        "--max-clients",
        "100000000",
        "/tmp",
    ];
    assert!(run(&many).contains("raise the limit"));
}
