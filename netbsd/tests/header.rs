//! The C header is what the library is: it is made of its source, and this test makes it anew.

#![cfg(not(target_os = "none"))]
use std::path::Path;

/// Columns of a line of C.
const WIDTH: usize = 79;

/// Makes the header: cbindgen's, with comments as the kernel has them.
fn made() -> String {
    let netbsd = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(netbsd.join("cbindgen.toml")).unwrap();
    let mut text = Vec::new();
    let builder = cbindgen::Builder::new().with_config(config).with_src(netbsd.join("src/lib.rs"));
    builder.generate().unwrap().write(&mut text);
    let text = String::from_utf8(text).unwrap();

    let (mut made, mut comment) = (String::new(), None);
    // The first comment is as it should be.
    let (head, rest) = text.split_at(text.find("*/").unwrap() + 3);
    made.push_str(head);
    for line in rest.lines() {
        let indent = line.replace("        ", "\t").chars().take_while(|c| *c == '\t').count();
        match (line.trim(), &mut comment) {
            ("/*", None) => comment = Some(String::new()),
            ("*/", Some(said)) => {
                made.push_str(&in_c(said, indent));
                comment = None;
            }
            (said, Some(comment)) => *comment += &format!("{said}\n"),
            _ => made += &format!("{}\n", line.replace("        ", "\t")),
        }
    }
    made
}

/// Returns documentation as a comment of C. What Rust wants to know of safety is said in C by context, locks and ownership.
fn in_c(said: &str, indent: usize) -> String {
    let tabs = "\t".repeat(indent);
    let said = said.split("\n# Safety\n").next().unwrap().replace('`', "");
    let paragraphs: Vec<String> =
        said.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let paragraphs: Vec<&String> = paragraphs.iter().filter(|part| !part.is_empty()).collect();
    if let [only] = paragraphs[..]
        && 8 * indent + only.len() + 6 <= WIDTH
    {
        return format!("{tabs}/* {only} */\n");
    }
    let width = WIDTH - 8 * indent - 3;
    let wrapped: Vec<String> = paragraphs.iter().map(|part| textwrap::fill(part, width)).collect();
    let lines: String =
        wrapped.join("\n\n").lines().map(|line| format!("{tabs} * {line}").trim_end().to_string() + "\n").collect();
    format!("{tabs}/*\n{lines}{tabs} */\n")
}

#[test]
fn the_header_is_made_of_the_library() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/xenpv.h");
    let made = made();
    if std::env::var_os("XENPV_HEADER_WRITE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "netbsd/include/xenpv.h is not what the library is; XENPV_HEADER_WRITE=1 cargo test -p xenpv \
         writes it anew"
    );
}
