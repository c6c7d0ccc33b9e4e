//! The header against the library: what `netbsd/build.sh` makes has exactly the functions that the header declares, wants nothing but
//! what the glue has, and lays out its structures as C does.
#![cfg(not(target_os = "none"))]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use common::{compiler, glue, left_out, root, run, say};
use xenpv::console::ConsoleCounters;
use xenpv::disk::{DiskCounters, DiskInfo, DiskSetup};
use xenpv::grants::GrantCounters;

type Names = BTreeSet<String>;

/// What the header declares.
#[derive(Default)]
struct Header {
    functions: Names,
    upcalls: Names,
    /// Fields by structure.
    fields: BTreeMap<String, Vec<String>>,
}

/// Reads the header: a declaration begins at the left margin, a field behind a tab.
fn header() -> Header {
    let text = std::fs::read_to_string(root("netbsd/include/xenpv.h")).unwrap();
    let mut header = Header::default();
    let mut inside = None;
    for line in text.lines() {
        if let Some((before, _)) = line.split_once('(')
            && line.starts_with(|c: char| c.is_ascii_lowercase())
        {
            let name = before.rsplit([' ', '*']).next().unwrap().to_string();
            let list = if line.starts_with("extern ") { &mut header.upcalls } else { &mut header.functions };
            list.insert(name);
        } else if let Some(name) = line.strip_prefix("struct ").and_then(|line| line.strip_suffix(" {")) {
            inside = Some(name.to_string());
        } else if line == "};" {
            inside = None;
        } else if let (Some(name), Some(field)) = (&inside, line.strip_prefix('\t').filter(|line| line.ends_with(';')))
        {
            // A plain field, or a pointer to a function.
            let field = field.trim_end_matches(';');
            let field = match field.split_once("(*") {
                Some((_, rest)) => rest.split(')').next().unwrap(),
                None => field.rsplit([' ', '*']).next().unwrap(),
            };
            header.fields.entry(name.clone()).or_default().push(field.to_string());
        }
    }
    assert!(header.functions.len() > 20 && header.upcalls.len() > 15 && header.fields.len() == 5, "the header is odd");
    header
}

/// Returns the names that an object defines for others, and those that it wants of them.
fn symbols(object: &Path) -> Result<(Names, Names), String> {
    let listed = run(Command::new("nm").args(["-g", "-P"]).arg(object))?;
    let (mut defined, mut wanted) = (Names::new(), Names::new());
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(kind)) = (words.next(), words.next()) else { continue };
        if kind.eq_ignore_ascii_case("u") { &mut wanted } else { &mut defined }.insert(name.into());
    }
    Ok((defined, wanted))
}

/// Returns why the object can't be built here, if so.
fn missing() -> Option<String> {
    let tools = ["ld", "objcopy", "size", "nm", "cc"];
    let tools = tools.iter().filter_map(|tool| run(Command::new(tool).arg("--version")).err());
    let libdir = run(Command::new("rustc").args(["--print", "target-libdir", "--target", "x86_64-unknown-none"]));
    let target = match libdir {
        Ok(path) if Path::new(path.trim()).exists() => None,
        Ok(_) => Some("no target x86_64-unknown-none".into()),
        Err(error) => Some(error),
    };
    tools.chain(target).next()
}

#[test]
fn the_object_has_the_functions_of_the_header_and_wants_those_of_the_glue() {
    if let Some(reason) = missing() {
        left_out("the check of xenpv.o", &reason);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut build = Command::new("sh");
    build.arg(root("netbsd/build.sh")).arg(folder.path()).env("CARGO_TARGET_DIR", target);
    run(&mut build).unwrap_or_else(|error| panic!("{error}"));
    let (defined, wanted) = symbols(&folder.path().join("xenpv.o")).unwrap();

    let header = header();
    assert_eq!(defined, header.functions, "what the object defines, and what the header declares");

    let mut glue_defines = Names::new();
    let mut glue_wants = Names::new();
    for file in glue() {
        let object = folder.path().join(file.with_extension("o").file_name().unwrap());
        let mut compile = compiler("cc").unwrap();
        run(compile.args(["-DXENPV", "-c", "-o"]).arg(&object).arg(&file)).unwrap();
        let (defined, wanted) = symbols(&object).unwrap();
        // Either driver may be left out of a kernel: up-calls stand in files that both have.
        if file.ends_with("xenpv_subr.c") || file.ends_with("xenpv_device.c") {
            glue_defines.extend(defined);
        }
        glue_wants.extend(wanted.into_iter().filter(|name| name.starts_with("xenpv_")));
    }
    let absent: Vec<_> = header.upcalls.difference(&glue_defines).collect();
    assert!(absent.is_empty(), "the files that both drivers have lack {absent:?}");
    let unknown: Vec<_> = wanted.iter().filter(|name| !header.upcalls.contains(*name)).collect();
    assert_eq!(unknown, ["hypercall_page"], "what the object wants and the header doesn't declare");
    let all: Names = header.functions.union(&glue_defines).cloned().collect();
    let absent: Vec<_> = glue_wants.difference(&all).collect();
    assert!(absent.is_empty(), "the glue calls {absent:?}, which nobody has");
    say(&format!("xenpv.o: {} functions, {} names wanted", defined.len(), wanted.len()));
}

/// Lists the size of a structure and the offsets of its fields, as Rust has them.
macro_rules! layout {
    ($facts:ident, $type:ty, $name:literal, $($field:ident)*) => {
        $facts.insert($name.to_string(), size_of::<$type>());
        $($facts.insert(concat!($name, ".", stringify!($field)).to_string(), offset_of!($type, $field));)*
    };
}

fn layouts_of_rust() -> BTreeMap<String, usize> {
    let mut facts = BTreeMap::new();
    layout!(facts, DiskSetup, "xenpv_xbd_setup", name path device mutexes arg done max_transfer queues);
    layout!(facts, DiskInfo, "xenpv_xbd_info", sectors sector_size physical_sector_size flags queues);
    layout!(facts, DiskCounters, "xenpv_xbd_counters",
        requests indirect segments flushes barriers discards notifications errors still_mapped bounced bounce_busy queue_full kept);
    layout!(facts, ConsoleCounters, "xenpv_cons_counters", written read notifications);
    layout!(facts, GrantCounters, "xenpv_grant_counters", entries free quarantined leaked);
    facts.insert("XENPV_ABI".into(), xenpv::XENPV_ABI as usize);
    facts
}

#[test]
fn structures_are_laid_out_as_in_c() {
    if let Err(reason) = run(Command::new("cc").arg("--version")) {
        left_out("the check of layouts", &reason);
        return;
    }
    let mut program = String::from("#include <kernel.h>\n#include \"xenpv.h\"\nint main(void);\nint main(void)\n{\n");
    for (name, fields) in header().fields {
        program += &format!("\tprintf(\"{name} %zu\\n\", sizeof(struct {name}));\n");
        for field in fields {
            program += &format!("\tprintf(\"{name}.{field} %zu\\n\", offsetof(struct {name}, {field}));\n");
        }
    }
    program += "\tprintf(\"XENPV_ABI %d\\n\", XENPV_ABI);\n\treturn 0;\n}\n";
    let folder = tempfile::tempdir().unwrap();
    let (source, binary) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&source, program).unwrap();
    run(compiler("cc").unwrap().arg("-o").arg(&binary).arg(&source)).unwrap();
    let said = run(&mut Command::new(&binary)).unwrap();
    let facts = said.lines().map(|line| line.split_once(' ').unwrap());
    let facts: BTreeMap<String, usize> = facts.map(|(name, value)| (name.into(), value.parse().unwrap())).collect();
    assert_eq!(facts, layouts_of_rust());
}

#[test]
fn the_library_tells_the_version_of_its_interface() {
    assert_eq!(xenpv::xenpv_abi(), xenpv::XENPV_ABI);
}
