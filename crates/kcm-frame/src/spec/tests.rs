use super::*;

fn read(spec: &str) -> Native {
    match spec.parse() {
        Ok(native) => native,
        Err(error) => panic!("{error}"),
    }
}

fn refuse(spec: &str) -> String {
    match spec.parse::<Framing>() {
        Ok(framing) => panic!("{spec} was read as {framing:?}"),
        Err(error) => {
            assert_eq!(error.errno(), 22);
            error.to_string()
        }
    }
}

fn length(offset: usize, width: usize, endian: Endian) -> LengthField {
    LengthField::new(offset, width, endian).expect("a good specification")
}

#[test]
fn short_forms() {
    let forms = [
        ("u8", length(0, 1, Endian::Big)),
        ("u8-1", length(0, 1, Endian::Big).bias(-1)),
        ("u16be", length(0, 2, Endian::Big)),
        ("u16le+2", length(0, 2, Endian::Little).bias(2)),
        ("u24be+9", length(0, 3, Endian::Big).bias(9)),
        ("u24le+4", length(0, 3, Endian::Little).bias(4)),
        ("u32be+4", length(0, 4, Endian::Big).bias(4)),
        ("u32le", length(0, 4, Endian::Little)),
        ("u40be", length(0, 5, Endian::Big)),
        ("u48le", length(0, 6, Endian::Little)),
        ("u56be", length(0, 7, Endian::Big)),
        (
            "u64be+9223372036854775807",
            length(0, 8, Endian::Big).bias(i64::MAX),
        ),
        (
            "u64le-9223372036854775808",
            length(0, 8, Endian::Little).bias(i64::MIN),
        ),
    ];
    for (text, field) in forms {
        assert_eq!(read(text), Native::Length(field), "{text}");
        assert_eq!(field.to_string(), text);
    }
    assert_eq!(read("u32be+0x10"), read("u32be+16"));
    assert_eq!(read("u32be+0").to_string(), "u32be");
}

#[test]
fn long_forms() {
    let full = "len:size=4,offset=1,endian=little,mask=0xffff0,shift=4,scale=8,bias=-1";
    let field = length(1, 4, Endian::Little)
        .mask(0xf_fff0)
        .shift(4)
        .scale(8)
        .bias(-1);
    assert_eq!(read(full), Native::Length(field));
    assert_eq!(field.to_string(), full);
    assert_eq!(read("len:bias=+4,endian=big,size=4").to_string(), "u32be+4");
    assert_eq!(
        read("len:size=1,endian=little,offset=2").to_string(),
        "len:size=1,offset=2"
    );
    assert_eq!(
        read("len:size=2,mask=255").to_string(),
        "len:size=2,mask=0xff"
    );
    assert_eq!(read("len:size=2,mask=0x1ffff").to_string(), "u16be");
}

#[test]
fn other_forms() {
    for text in [
        "varint",
        "varint:max=4",
        "varint:offset=1",
        "varint:offset=1,max=4",
        "fixed:7",
    ] {
        assert_eq!(read(text).to_string(), text);
    }
    assert_eq!(read("varint:max=10,offset=0").to_string(), "varint");
}

#[test]
fn errors_show_the_piece_and_what_is_possible() {
    let text = refuse("u32xe+4");
    let start = r#""u32xe+4": unknown length field "u32xe": one of u8, u16be, u16le,"#;
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains(", fixed:N, or a protocol: 9p, "), "{text}");
    assert_eq!(
        refuse("thrfit"),
        r#""thrfit": unknown protocol "thrfit": did you mean thrift?"#
    );
    let pieces = [
        ("", r#"unknown length field """#),
        ("u8be", r#"unknown length field "u8be""#),
        ("u32", r#"unknown length field "u32""#),
        ("u72be", r#"unknown length field "u72be""#),
        ("U32BE", r#"unknown length field "U32BE""#),
        ("u32be+", r#"bad number "+""#),
        ("u32be++4", r#"bad number "++4""#),
        ("u32be+-4", r#"bad number "+-4""#),
        ("u32be+4 ", r#"bad number "+4 ""#),
        (
            "u64be+9223372036854775808",
            r#"bad number "+9223372036854775808""#,
        ),
        ("length:size=4", r#"unknown form "length""#),
        ("len", r#"incomplete form "len""#),
        ("fixed", r#"incomplete form "fixed""#),
        ("len:", r#"not a key=value pair: """#),
        ("len:size=4,", r#"not a key=value pair: """#),
        ("len:size", r#"not a key=value pair: "size""#),
        (
            "len:offset=1",
            r#"no size given in "offset=1": size=1 to size=8"#,
        ),
        ("len:size=4,size=4", r#"given twice: "size=4""#),
        (
            "len:size=4,width=4",
            r#"unknown key in "width=4": one of offset,"#,
        ),
        ("len:size=9", r#"out of range "size=9": 1 to 8"#),
        ("len:size=0", r#"out of range "size=0": 1 to 8"#),
        (
            "len:size=4,offset=65536",
            r#"out of range "offset=65536": 0 to 65535"#,
        ),
        ("len:size=4,shift=65", r#"out of range "shift=65": 0 to 64"#),
        (
            "len:size=4,shift=99999999999",
            r#"out of range "shift=99999999999": 0 to 64"#,
        ),
        (
            "len:size=4,endian=middle",
            r#"unknown byte order "endian=middle": big or little"#,
        ),
        (
            "len:size=4,mask=ff",
            r#"bad number "ff": a decimal number, or"#,
        ),
        ("len:size=4,mask=-1", r#"bad number "-1""#),
        ("len:size=4,mask=0x", r#"bad number "0x""#),
        ("len:size=4,mask=0x+1", r#"bad number "0x+1""#),
        ("varint:", r#"not a key=value pair: """#),
        ("varint:max=11", r#"out of range "max=11": 1 to 10"#),
        (
            "varint:size=1",
            r#"unknown key in "size=1": one of offset, max"#,
        ),
        (
            "varint:offset=65536",
            r#"out of range "offset=65536": 0 to 65535"#,
        ),
        ("varint+4", r#"unknown length field "varint""#),
        (
            "fixed:0",
            r#"out of range "0": a length of at least 1 byte"#,
        ),
        ("fixed:-1", r#"bad number "-1""#),
        ("fixed:", r#"bad number """#),
    ];
    for (spec, piece) in pieces {
        let text = refuse(spec);
        let (named, rest) = text.split_at(format!("{spec:?}: ").len());
        assert_eq!(named, format!("{spec:?}: "));
        assert!(rest.starts_with(piece), "{text}");
    }
}
