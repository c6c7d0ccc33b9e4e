//! The two programs that tell what each language makes of the list.
//!
//! Both tell facts by the same names: `path` for a constant; `path size`, `path align`, `path signed` for a type; and
//! `path.field offset`, `path.field size`, `path.field signed` for a field. A text is told as the numbers of its bytes.

use std::fmt::Write;

use crate::listing::{Abi, Entry, Kind, Listing};

/// Returns the C program that tells the facts of all items of an ABI, or nothing if there are none.
pub fn c(listing: &Listing, abi: Abi) -> Option<String> {
    let entries: Vec<&Entry> = listing.entries.iter().filter(|e| e.abi == abi).collect();
    if entries.is_empty() {
        return None;
    }
    let mut out = String::from(C_PRELUDE);
    for header in &listing.headers {
        // A program for the other word size has no items of the headers of this one.
        if abi == Abi::Native || !header.starts_with("arch-") {
            line(&mut out, format_args!("#include <xen/{header}>"));
        }
    }
    out.push_str(C_TELLERS);
    for (n, entry) in entries.iter().enumerate() {
        c_entry(&mut out, n, entry);
    }
    out.push_str("int main(void) {\n");
    for n in 0..entries.len() {
        line(&mut out, format_args!("  f{n}();"));
    }
    out.push_str("  return 0;\n}\n");
    Some(out)
}

const C_PRELUDE: &str = "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <xen/xen.h>\n";

const C_TELLERS: &str = r#"
#define INTEGER(name, e) \
  printf("%s=%s%llu\n", name, (e) < 0 ? "-" : "", (unsigned long long)((e) < 0 ? -(e) : (e)))
#define SIGNED(name, type) INTEGER(name, (type)-1 < 0)
static void tell_text(const char *name, const char *text) {
  printf("%s=", name);
  for (; *text; text++) printf("%u ", (unsigned)(unsigned char)*text);
  printf("\n");
}
"#;

/// Writes the C function `f<n>` that tells the facts of an item.
fn c_entry(out: &mut String, n: usize, entry: &Entry) {
    let path = &entry.path;
    match &entry.kind {
        Kind::Integer { c, .. } => line(out, format_args!("static void f{n}(void) {{ INTEGER(\"{path}\", {c}); }}")),
        Kind::Text { c } => line(out, format_args!("static void f{n}(void) {{ tell_text(\"{path}\", {c}); }}")),
        Kind::Type { c, up_to, signed, fields, .. } => {
            line(out, format_args!("typedef {c} t{n};\nstatic void f{n}(void) {{"));
            match up_to {
                Some(field) => line(out, format_args!("  INTEGER(\"{path} size\", offsetof(t{n}, {field}));")),
                None => {
                    line(out, format_args!("  INTEGER(\"{path} size\", sizeof(t{n}));"));
                    line(out, format_args!("  INTEGER(\"{path} align\", _Alignof(t{n}));"));
                }
            }
            if signed.is_some() {
                line(out, format_args!("  SIGNED(\"{path} signed\", t{n});"));
            }
            for field in fields {
                let name = &field.name;
                let c = name.strip_prefix("r#").unwrap_or(name);
                line(out, format_args!("  INTEGER(\"{path}.{name} offset\", offsetof(t{n}, {c}));"));
                line(out, format_args!("  INTEGER(\"{path}.{name} size\", sizeof(((t{n} *)0)->{c}));"));
                if field.signed.is_some() {
                    line(out, format_args!("  SIGNED(\"{path}.{name} signed\", __typeof__(((t{n} *)0)->{c}));"));
                }
            }
            out.push_str("}\n");
        }
    }
}

/// Returns the Rust expressions that tell the facts of all items: the body of a function with a `facts: &mut Facts`.
pub fn rust(listing: &Listing) -> String {
    let mut out = String::from("{\n");
    for entry in &listing.entries {
        let path = &entry.path;
        let item = format!("xen_sys::{path}");
        match &entry.kind {
            Kind::Integer { newtype, .. } => {
                let value = if *newtype { ".0" } else { "" };
                line(&mut out, format_args!("facts.integer(\"{path}\", {item}{value} as i128);"));
            }
            Kind::Text { .. } => line(&mut out, format_args!("facts.text(\"{path}\", {item});")),
            Kind::Type { up_to, signed, fields, parameters, .. } => {
                let units = vec!["()"; *parameters].join(", ");
                let ty = if *parameters == 0 { item } else { format!("{item}<{units}>") };
                line(&mut out, format_args!("facts.integer(\"{path} size\", size_of::<{ty}>() as i128);"));
                if up_to.is_none() {
                    line(&mut out, format_args!("facts.integer(\"{path} align\", align_of::<{ty}>() as i128);"));
                }
                if let Some(signed) = signed {
                    line(&mut out, format_args!("facts.integer(\"{path} signed\", {});", i32::from(*signed)));
                }
                for field in fields {
                    let name = &field.name;
                    line(
                        &mut out,
                        format_args!(
                            "facts.integer(\"{path}.{name} offset\", core::mem::offset_of!({ty}, {name}) as i128);"
                        ),
                    );
                    let size = field_size(&ty, name);
                    line(&mut out, format_args!("facts.integer(\"{path}.{name} size\", {size} as i128);"));
                    if let Some(signed) = field.signed {
                        line(&mut out, format_args!("facts.integer(\"{path}.{name} signed\", {});", i32::from(signed)));
                    }
                }
            }
        }
    }
    out.push_str("}\n");
    out
}

/// Returns how much is checked, in words.
pub fn summary(listing: &Listing) -> String {
    let (mut types, mut fields, mut constants) = (0, 0, 0);
    for entry in &listing.entries {
        match &entry.kind {
            Kind::Type { fields: some, .. } => {
                types += 1;
                fields += some.len();
            }
            _ => constants += 1,
        }
    }
    format!("{types} types with {fields} fields, {constants} constants")
}

/// Returns a Rust expression: the list of the types that implement `Wire`, each with its size, alignment, and the sum of the
/// sizes of its fields.
pub fn wire(listing: &Listing) -> String {
    let mut out = String::from("vec![\n");
    for (path, fields) in &listing.wire {
        let ty = format!("xen_sys::{path}");
        let sizes: Vec<String> = fields.iter().map(|name| field_size(&ty, name)).collect();
        let sum = if sizes.is_empty() { "0".into() } else { sizes.join(" + ") };
        line(&mut out, format_args!("(\"{path}\", size_of::<{ty}>(), align_of::<{ty}>(), {sum}),"));
    }
    out.push_str("]\n");
    out
}

fn field_size(ty: &str, name: &str) -> String {
    format!("abi::compare::field_size::<{ty}, _>(|it| &raw const it.{name})")
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes any text, so there is no error to pass on.
    let _ = writeln!(out, "{text}");
}
