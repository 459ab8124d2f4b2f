//! What a client that means harm cannot do: leave the directory, open what is no file, have the
//! server hold more and more, or stop a worker.

mod client;

use client::*;
use std::{
    fs,
    io::Write,
    os::unix::{fs::symlink, net::UnixListener},
    process::Command,
};

/// The same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(limit)).expect("below")
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::try_from(self.below(values.len().try_into().expect("few"))).expect("small")]
    }
}

const NAMES: [&str; 14] = [
    "f", "d", "e", "out", "file", "fifo", "..", ".", "", "a/b", "/etc", "g\0", "proc", "new",
];
const KINDS: [u8; 24] = [
    TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TRENAME, TREADLINK, TGETATTR, TSETATTR,
    TXATTRWALK, TREADDIR, TFSYNC, TLOCK, TGETLOCK, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT, TATTACH,
    TWALK, TWALK, TREAD, TWRITE, TCLUNK,
];

/// A request that is well formed, most of the time, of random fields.
fn request(random: &mut Random) -> (u8, Body) {
    let kind = random.of(&KINDS);
    let fid = |r: &mut Random| r.below(6);
    let name = |r: &mut Random| r.of(&NAMES);
    let word = |r: &mut Random| match r.below(3) {
        0 => r.below(9),
        1 => 1 << r.below(32),
        _ => r.below(u32::MAX),
    };
    let long = |r: &mut Random| match r.below(3) {
        0 => u64::from(r.below(9)),
        1 => 1 << r.below(64),
        _ => u64::MAX - u64::from(r.below(9)),
    };
    let r = random;
    let body = Body::new().u32(fid(r));
    let body = match kind {
        TLOPEN => body.u32(word(r)),
        TLCREATE => body.string(name(r)).u32(word(r)).u32(word(r)).u32(0),
        TSYMLINK => body
            .string(name(r))
            .string(r.of(&["../outside/secret", "/", "f", ""]))
            .u32(0),
        TMKNOD => {
            let mode = r.of(&[0o10_644, 0o20_666, 0o60_666, 0o100_644, 0o140_600, 0]);
            body.string(name(r)).u32(mode).u32(1).u32(3).u32(0)
        }
        TRENAME | TLINK => body.u32(fid(r)).string(name(r)),
        TGETATTR => body.u64(long(r)),
        // (Not its mode or owner: the test's own clean-up has to get in.)
        TSETATTR => body
            .u32(word(r) & !7)
            .raw(&[0; 12])
            .u64(long(r) & 0xffff)
            .u64(long(r))
            .u64(long(r))
            .u64(long(r))
            .u64(long(r)),
        TXATTRWALK => body.u32(fid(r)).string(name(r)),
        TREADDIR | TREAD => body.u64(long(r)).u32(word(r)),
        TWRITE => body.u64(long(r) & 0xffff).u32(3).raw(b"xyz"),
        TFSYNC => body.u32(word(r)),
        TLOCK => body
            .u8(u8::try_from(r.below(4)).expect("small"))
            .u32(0)
            .u64(long(r))
            .u64(long(r))
            .u32(r.below(3))
            .string("host"),
        TGETLOCK => body
            .u8(u8::try_from(r.below(4)).expect("small"))
            .u64(long(r))
            .u64(long(r))
            .u32(r.below(3))
            .string("host"),
        TMKDIR => body.string(name(r)).u32(0o755).u32(0),
        TRENAMEAT => body.string(name(r)).u32(fid(r)).string(name(r)),
        TUNLINKAT => body.string(name(r)).u32(r.of(&[0, 0x200, 1])),
        TATTACH => body.u32(NOFID).string("me").string(name(r)).u32(0),
        TWALK => {
            let count = r.below(5);
            let body = body.u32(fid(r)).u16(u16::try_from(count).expect("small"));
            (0..count).fold(body, |body, _| body.string(name(r)))
        }
        _ => body,
    };
    (kind, body)
}

/// What lies outside, and that nothing else does.
fn outside_is_untouched(served: &Served) {
    let secret = served.outside().join("secret");
    assert_eq!(fs::read(&secret).expect("there"), b"secret");
    assert_eq!(fs::read_dir(served.outside()).expect("there").count(), 1);
    let base = served.outside();
    let base = base.parent().expect("above");
    let names = fs::read_dir(base).expect("there").count();
    assert_eq!(names, 2, "beside the directory that is served");
}

#[test]
fn random_requests_reach_nothing_outside_and_stop_nobody() {
    let served = Served::new(&["--workers", "2"]);
    symlink("../outside", served.path("out")).expect("made");
    symlink("../outside/secret", served.path("file")).expect("made");
    symlink("/proc/self/root", served.path("proc")).expect("made");
    fs::write(served.path("f"), "text").expect("written");
    let mut random = Random(1);
    let mut succeeded = 0;
    for _ in 0..40 {
        let mut c = served.client();
        // Several at once, so that they meet.
        for _ in 0..64 {
            let mut bytes = Vec::new();
            for tag in 0..8 {
                let (kind, body) = request(&mut random);
                bytes.extend(message(kind, tag, &body));
            }
            c.stream.write_all(&bytes).expect("sent");
            for _ in 0..8 {
                let answer = c.receive();
                if answer.errno().is_none() {
                    succeeded += 1;
                }
                let told = String::from_utf8_lossy(&answer.body).into_owned();
                assert!(
                    answer.kind == TREADLINK + 1 || !told.contains("secret"),
                    "{answer:?}"
                );
            }
        }
    }
    assert!(succeeded > 2_000, "{succeeded}: too few to say anything");
    outside_is_untouched(&served);
    let mut c = served.client();
    c.create(1, "after all");
    assert_eq!(c.write(1, 0, b"x"), Ok(1));
}

#[test]
fn random_requests_change_nothing_that_is_read_only() {
    let served = Served::new(&["--read-only"]);
    fs::write(served.path("f"), "text").expect("written");
    fs::create_dir(served.path("d")).expect("made");
    symlink("../outside", served.path("out")).expect("made");
    let state = || {
        let mut all: Vec<_> = fs::read_dir(served.path(""))
            .expect("there")
            .map(|entry| {
                use std::os::unix::fs::MetadataExt;
                let entry = entry.expect("an entry");
                let meta = entry.metadata().expect("there");
                (
                    entry.file_name(),
                    meta.mode(),
                    meta.size(),
                    meta.ctime_nsec(),
                )
            })
            .collect();
        all.sort();
        all
    };
    let before = state();
    let mut c = served.client();
    let mut random = Random(2);
    for _ in 0..10_000 {
        let (kind, body) = request(&mut random);
        let _ = c.call(kind, body);
    }
    assert_eq!(state(), before);
    outside_is_untouched(&served);
}

#[test]
fn what_is_no_file_is_not_opened() {
    let served = Served::new(&[]);
    let mut c = served.client();
    let _listener = UnixListener::bind(served.path("socket")).expect("bound");
    let mut names = vec!["socket"];
    // The endless one.
    let made = Command::new("mknod")
        .arg(served.path("zero"))
        .args(["c", "1", "5"])
        .status();
    match made {
        Ok(status) if status.success() => names.push("zero"),
        _ => eprintln!("no device is tried: only root can make one"),
    }
    for name in names {
        for flags in [0, 1, 2, 0o1002] {
            assert_eq!(c.open(1, name, flags), Err(EOPNOTSUPP), "{name} {flags}");
        }
        // By creating what is there already.
        c.walk(0, 1, &[]).expect("the root");
        let create = Body::new().u32(1).string(name).u32(2).u32(0o644).u32(0);
        assert_eq!(c.fails(TLCREATE, create), EOPNOTSUPP);
        c.clunk(1).expect("a fid");
        c.walk(0, 1, &[name]).expect("looked at");
        assert_eq!(c.read(1, 0, 9), Err(EBADF));
        assert_eq!(c.write(1, 0, b"x"), Err(EBADF));
        c.clunk(1).expect("a fid");
    }
    for mode in [0o20_666, 0o60_666] {
        let node = Body::new().u32(0).string("disk").u32(mode);
        assert_eq!(c.fails(TMKNOD, node.u32(8).u32(0).u32(0)), EPERM);
    }
}

#[test]
fn a_walk_has_sixteen_names_at_most_and_none_leads_up() {
    let served = Served::new(&[]);
    let deep: Vec<_> = (0..16).map(|at| format!("d{at}")).collect();
    fs::create_dir_all(served.path(&deep.join("/"))).expect("made");
    let mut names: Vec<_> = deep.iter().map(String::as_str).collect();
    let mut c = served.connect();
    // As small as can be: the longest answer to a walk fits all the same.
    assert_eq!(c.version(4_096), 4_096);
    let attach = Body::new().u32(0).u32(NOFID).string("me").string("").u32(0);
    c.ok(TATTACH, attach);
    assert_eq!(c.walk(0, 1, &names), Ok(16));
    for at in 0..16 {
        let was = std::mem::replace(&mut names[at], "..");
        assert_eq!(c.walk(0, 2, &names), Err(EINVAL), "{at}");
        names[at] = was;
    }
    names.push("d16");
    assert_eq!(c.walk(0, 2, &names), Err(EINVAL));
    // From the bottom there is no way up either.
    assert_eq!(c.walk(1, 2, &[".."]), Err(EINVAL));
    assert_eq!(c.walk(1, 2, &["../../x"]), Err(EINVAL));
    // A promise of names that are not there.
    for count in [1, 16, 17, u16::MAX] {
        let errno = c.fails(TWALK, Body::new().u32(0).u32(3).u16(count));
        assert!([EBADMSG, EINVAL].contains(&errno), "{errno}");
    }
}

#[test]
fn locks_cut_into_pieces_are_bounded() {
    let served = Served::new(&[]);
    let mut c = served.client();
    c.create(1, "f");
    let lock = |kind, start, len| {
        let body = Body::new().u32(1).u8(kind).u32(0).u64(start).u64(len);
        body.u32(7).string([b'h'; 256])
    };
    assert_eq!(c.ok(TLOCK, lock(1, 0, 0)), [0]);
    let refused = (1..6_000).find(|at| c.call(TLOCK, lock(2, 2 * at, 1)).is_err());
    assert!(refused.is_some_and(|at| at < 5_000), "{refused:?}");
    // Others still have theirs, and what was taken can be given back.
    let mut other = served.client();
    other.create(1, "g");
    assert_eq!(other.ok(TLOCK, lock(1, 0, 0)), [0]);
    assert_eq!(c.ok(TLOCK, lock(2, 0, 0)), [0]);
    assert_eq!(c.ok(TLOCK, lock(1, 0, 0)), [0]);
    // A name longer than hosts have.
    let long = Body::new().u32(1).u8(1).u32(0).u64(0).u64(0).u32(7);
    assert_eq!(c.fails(TLOCK, long.string([b'h'; 257])), EINVAL);
}

#[test]
fn broken_clients_are_no_harm_when_nobody_reads_what_is_said_of_them() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let served = Served::logging_to(writer);
    drop(reader);
    for _ in 0..8 {
        let mut broken = served.connect();
        broken.stream.write_all(&[0xff; 8]).expect("sent");
        assert!(broken.try_receive().is_err());
    }
    let mut c = served.client();
    c.create(1, "after all");
}

#[test]
fn clients_that_come_and_go_leave_nothing() {
    let served = Served::new(&[]);
    let round = || {
        for at in 0..50 {
            let mut c = served.client();
            c.create(1, "f");
            c.write(1, 0, b"x").expect("open");
            // Some with a request under way, which the server tells.
            if at % 25 == 0 {
                c.send(TREAD, 1, &read_body(1, 0, 1));
            }
        }
    };
    let idle = served.descriptors();
    round();
    eventually("all is closed", || served.descriptors() <= idle);
    let before = served.memory();
    (0..10).for_each(|_| round());
    eventually("all is closed", || served.descriptors() <= idle);
    let more = served.memory().saturating_sub(before);
    assert!(more < 8 << 20, "{} KiB", more >> 10);
}
