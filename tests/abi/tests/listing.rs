//! What the check can't cover fails; what it covers, it compares.

use std::fs;

use abi::compare::{Facts, differences};
use abi::listing::{Abi, Kind, Listing, list};

/// Lists a crate that has this source.
fn listing(source: &str) -> Listing {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("lib.rs");
    fs::write(&root, source).unwrap();
    list(&root, "64")
}

fn problem(source: &str) -> String {
    let found = listing(source);
    assert!(found.entries.is_empty(), "{source}: {:?}", found.entries);
    assert_eq!(found.problems.len(), 1, "{source}: {:?}", found.problems);
    found.problems[0].clone()
}

#[test]
fn a_type_whose_documentation_names_no_c_type_is_a_problem() {
    assert!(problem("/// Made up.\npub struct A { pub x: u8 }").starts_with("A: "));
    assert!(problem("pub union A { pub x: u8 }").starts_with("A: "));
    assert!(problem("pub mod m { /// `a.h`.\n pub type A = u8; }").starts_with("m::A: "));
    assert!(problem("/// `a.h`, `struct a`. An enum can't hold any value.\npub enum A { X }").starts_with("A: "));
}

#[test]
fn an_associated_constant_whose_documentation_names_no_c_constant_is_a_problem() {
    let source =
        "/// No C counterpart: a test.\npub struct A(pub u8);\nimpl A { /// The first.\n pub const X: A = A(0); }";
    assert!(problem(source).starts_with("A::X: "));
}

#[test]
fn what_may_hide_public_items_is_a_problem() {
    assert!(problem("make_types! { A B }").contains("make_types"));
    assert!(problem("mod hidden { }").starts_with("hidden: "));
    assert!(problem("pub use elsewhere::Thing;").contains("elsewhere"));
    assert!(problem("pub static X: u8 = 0;").starts_with("X: "));
    assert!(problem("/// No C counterpart:\npub static X: u8 = 0;").starts_with("X: "));
    assert!(problem("pub trait T { const X: u8; }").starts_with("T::X: "));
    assert!(problem("pub mod gone;").contains("gone"));
}

#[test]
fn a_private_field_that_is_not_padding_is_a_problem() {
    let found = listing("/// `a.h`, `struct a`.\npub struct A { pub x: u8, y: u8, _pad: u16 }");
    assert_eq!(found.problems, ["A: private field y"]);
}

#[test]
fn a_cfg_that_is_not_understood_is_a_problem() {
    let found = listing("#[cfg(feature = \"x\")]\npub const A: u8 = 0;");
    assert_eq!(found.problems.len(), 1);
}

#[test]
fn items_of_another_word_size_are_not_listed() {
    let found = listing(
        "#[cfg(target_pointer_width = \"32\")]\npub const A: u8 = 0;\n#[cfg(target_pointer_width = \"64\")]\npub const B: u8 = 0;",
    );
    assert!(found.problems.is_empty());
    assert_eq!(found.entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["B"]);
}

#[test]
fn a_reason_exempts_an_item_and_is_told() {
    let found = listing("/// No C counterpart: we want it.\npub const A: u8 = 0;");
    assert!(found.entries.is_empty() && found.problems.is_empty());
    assert_eq!(found.exempt, ["A: we want it."]);
}

#[test]
fn names_follow_the_documentation() {
    let found = listing(
        "/// `io/x.h`, `struct x.u`. Part.\npub union A { pub a: i16 }\n\
         /// `X_MAX`: most.\npub const MOST: u8 = 0;\n\
         /// The `u8` of it.\npub const X_MIN: u8 = 0;\n\
         /// `io/x.h`, `struct x` up to `ring`. Header.\npub struct B { pub a: u8 }\n\
         pub mod x86_32 { /// `io/x.h`, `struct x`. Whole.\n pub struct C { pub a: u8 } }",
    );
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert!(found.headers.contains("io/x.h"));
    let c: Vec<&str> = found
        .entries
        .iter()
        .map(|e| match &e.kind {
            Kind::Type { c, .. } | Kind::Integer { c, .. } | Kind::Text { c } => c.as_str(),
        })
        .collect();
    assert_eq!(c, ["__typeof__(((struct x *)0)->u)", "X_MAX", "X_MIN", "struct x", "struct x"]);
    assert!(matches!(&found.entries[3].kind, Kind::Type { up_to: Some(field), .. } if field == "ring"));
    assert_eq!(found.entries[4].abi, Abi::Bits32);
}

#[test]
fn any_fact_that_differs_or_is_missing_on_one_side_is_told() {
    let facts = |lines: &str| {
        let mut facts = Facts::default();
        facts.lines(lines);
        facts
    };
    let same = facts("A size=8\nA align=8\nA.x offset=4\nX=-1\nS=97 98 ");
    let mut rust = Facts::default();
    for (name, value) in [("A size", 8), ("A align", 8), ("A.x offset", 4), ("X", -1)] {
        rust.integer(name, value);
    }
    rust.text("S", "ab");
    assert_eq!(differences(&rust, &same), Vec::<String>::new());
    for other in [
        "A size=9\nA align=8\nA.x offset=4\nX=-1\nS=97 98",
        "A size=8\nA align=16\nA.x offset=4\nX=-1\nS=97 98",
        "A size=8\nA align=8\nA.x offset=0\nX=-1\nS=97 98",
        "A size=8\nA align=8\nA.x offset=4\nX=1\nS=97 98",
        "A size=8\nA align=8\nA.x offset=4\nX=-1\nS=97",
        "A size=8\nA align=8\nA.x offset=4\nX=-1",
        "A size=8\nA align=8\nA.x offset=4\nX=-1\nS=97 98\nY=0",
    ] {
        assert_eq!(differences(&rust, &facts(other)).len(), 1, "{other}");
    }
}
