//! The list of what xen-sys makes public, read from its source, with the C counterpart of each item.
//!
//! A type's documentation begins with the header and the C type: `` `io/blkif.h`, `struct blkif_request`. `` A member of it is
//! reached by dots, `` `struct evtchn_status.u` ``; the first part of a structure is named `` `struct blkif_sring` up to `ring` ``.
//! A constant has its C name, unless its documentation begins with another one, `` `BLKIF_OP_READ`: ``; an associated constant's
//! documentation always does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, Fields, ImplItem, Item, Lit, Meta, Type, UseTree, Visibility};

/// What the documentation of an item says that C doesn't have; a reason follows.
pub const EXEMPT: &str = "No C counterpart: ";

/// Whose layout an item has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Abi {
    /// That of the target of the build.
    Native,
    /// That of a 32-bit x86 guest: an item in a module `x86_32`.
    Bits32,
    /// That of a 64-bit x86 guest: an item in a module `x86_64`.
    Bits64,
}

/// A public item and its C counterpart.
#[derive(Debug)]
pub struct Entry {
    /// Path in xen-sys.
    pub path: String,
    /// Whose layout it has.
    pub abi: Abi,
    /// What it is.
    pub kind: Kind,
}

/// What an item is.
#[derive(Debug)]
pub enum Kind {
    /// A type: the C type as an expression for `typeof`, the field it ends before if not at its end, whether it is a signed
    /// integer if it is one, its fields, its number of type parameters.
    Type {
        /// The C type.
        c: String,
        /// Field of the C type before which the Rust type ends.
        up_to: Option<String>,
        /// Whether it is a signed integer, if it is an integer.
        signed: Option<bool>,
        /// Its fields.
        fields: Vec<Field>,
        /// How many type parameters it has.
        parameters: usize,
    },
    /// An integer constant, as a newtype or plain.
    Integer {
        /// The C expression.
        c: String,
        /// Whether it is the field of a newtype.
        newtype: bool,
    },
    /// A text constant.
    Text {
        /// The C expression.
        c: String,
    },
}

/// A field of a type.
#[derive(Debug)]
pub struct Field {
    /// Its name, in both languages.
    pub name: String,
    /// Whether it is a signed integer, if it is an integer.
    pub signed: Option<bool>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Items to be checked.
    pub entries: Vec<Entry>,
    /// Items that say of themselves that C doesn't have them, with the reason.
    pub exempt: Vec<String>,
    /// Items that can't be checked, and why. Each fails the test.
    pub problems: Vec<String>,
    /// Headers that the items name.
    pub headers: BTreeSet<String>,
    /// Paths of types that implement `Wire`, with their fields.
    pub wire: Vec<(String, Vec<String>)>,
    /// Files that were read.
    pub files: Vec<PathBuf>,
    pointer_width: String,
    fields_of: Vec<(String, Vec<String>)>,
}

/// Lists the crate whose root module is at `root`, for a target of so many bits.
pub fn list(root: &Path, pointer_width: &str) -> Listing {
    let mut listing = Listing { pointer_width: pointer_width.into(), ..Listing::default() };
    listing.file(root, root.parent().unwrap_or(Path::new("")), "");
    for (path, fields) in &mut listing.wire {
        match listing.fields_of.iter().find(|(of, _)| of == path) {
            Some((_, found)) => fields.clone_from(found),
            None => listing.problems.push(format!("{path}: implements Wire, but isn't a structure of its module")),
        }
    }
    listing
}

impl Listing {
    /// Lists a file that holds the module `path`, whose own modules' files are in `dir`.
    fn file(&mut self, file: &Path, dir: &Path, path: &str) {
        self.files.push(file.to_path_buf());
        let parsed = match fs::read_to_string(file).map_err(|e| e.to_string()) {
            Ok(text) => syn::parse_file(&text).map_err(|e| e.to_string()),
            Err(e) => Err(e),
        };
        match parsed {
            Ok(parsed) => {
                if let Some((header, _)) = leading_code(&doc(&parsed.attrs))
                    && header.ends_with(".h")
                {
                    self.headers.insert(header);
                }
                self.items(&parsed.items, dir, path);
            }
            Err(e) => self.problems.push(format!("{}: {e}", file.display())),
        }
    }

    fn items(&mut self, items: &[Item], dir: &Path, path: &str) {
        let modules: Vec<String> =
            items.iter().filter_map(|i| if let Item::Mod(m) = i { Some(m.ident.to_string()) } else { None }).collect();
        for item in items {
            self.item(item, dir, path, &modules);
        }
    }

    fn item(&mut self, item: &Item, dir: &Path, path: &str, modules: &[String]) {
        match item {
            Item::Mod(i) => self.module(i, dir, path),
            Item::Const(i) if public(&i.vis) && self.enabled(&i.attrs, path) => {
                self.constant(&join(path, &i.ident.to_string()), Some(i.ident.to_string()), &i.ty, &doc(&i.attrs));
            }
            Item::Struct(i) if public(&i.vis) && self.enabled(&i.attrs, path) => {
                let path = join(path, &i.ident.to_string());
                let (fields, signed) = match &i.fields {
                    Fields::Named(named) => (self.fields(&path, named), None),
                    Fields::Unnamed(f) if f.unnamed.len() == 1 => (Vec::new(), signed(&f.unnamed[0].ty)),
                    _ => {
                        self.problems.push(format!("{path}: neither named fields nor one unnamed"));
                        return;
                    }
                };
                self.type_(&path, &doc(&i.attrs), fields, signed, &i.generics);
            }
            Item::Union(i) if public(&i.vis) && self.enabled(&i.attrs, path) => {
                let path = join(path, &i.ident.to_string());
                let fields = self.fields(&path, &i.fields);
                self.type_(&path, &doc(&i.attrs), fields, None, &i.generics);
            }
            Item::Type(i) if public(&i.vis) && self.enabled(&i.attrs, path) => {
                self.type_(&join(path, &i.ident.to_string()), &doc(&i.attrs), Vec::new(), signed(&i.ty), &i.generics);
            }
            Item::Impl(i) => self.implementation(i, path),
            Item::Trait(i) if public(&i.vis) => {
                for part in &i.items {
                    if let syn::TraitItem::Const(c) = part {
                        let path = join(&join(path, &i.ident.to_string()), &c.ident.to_string());
                        self.exempt_or(&path, &doc(&c.attrs), "constant of a trait");
                    }
                }
            }
            Item::Use(i) if public(&i.vis) => self.reexport(&i.tree, path, modules),
            Item::Macro(i) => {
                let name = i.mac.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
                if !name.starts_with("const_assert") {
                    self.problems.push(format!("{path}: macro {name}! may make items that can't be seen"));
                }
            }
            Item::Enum(i) if public(&i.vis) => {
                self.exempt_or(&join(path, &i.ident.to_string()), &doc(&i.attrs), "Rust enum for a C type");
            }
            Item::Static(i) if public(&i.vis) => {
                self.exempt_or(&join(path, &i.ident.to_string()), &doc(&i.attrs), "static");
            }
            Item::ExternCrate(_) | Item::ForeignMod(_) | Item::TraitAlias(_) | Item::Verbatim(_) => {
                self.problems.push(format!("{path}: kind of item that can't be listed"));
            }
            _ => {}
        }
    }

    fn module(&mut self, module: &syn::ItemMod, dir: &Path, path: &str) {
        if !self.enabled(&module.attrs, path) {
            return;
        }
        let name = module.ident.to_string();
        let path = join(path, &name);
        if !public(&module.vis) {
            self.problems.push(format!("{path}: private module, whose items may be exported elsewhere"));
        } else if let Some((_, items)) = &module.content {
            self.items(items, &dir.join(name), &path);
        } else {
            let flat = dir.join(format!("{name}.rs"));
            let file = if flat.exists() { flat } else { dir.join(&name).join("mod.rs") };
            self.file(&file, &dir.join(name), &path);
        }
    }

    fn implementation(&mut self, block: &syn::ItemImpl, path: &str) {
        if !self.enabled(&block.attrs, path) {
            return;
        }
        let Some(name) = type_name(&block.self_ty) else {
            self.problems.push(format!("{path}: implementation for a type without a name"));
            return;
        };
        let path = join(path, &name);
        if let Some((_, implemented, _)) = &block.trait_ {
            if implemented.segments.last().is_some_and(|s| s.ident == "Wire") {
                self.wire.push((path, Vec::new()));
            }
            return;
        }
        for part in &block.items {
            match part {
                ImplItem::Const(c) if public(&c.vis) && self.enabled(&c.attrs, &path) => {
                    self.constant(&join(&path, &c.ident.to_string()), None, &c.ty, &doc(&c.attrs));
                }
                ImplItem::Macro(_) => self.problems.push(format!("{path}: macro that may make constants")),
                _ => {}
            }
        }
    }

    fn reexport(&mut self, tree: &UseTree, path: &str, modules: &[String]) {
        let own = match tree {
            UseTree::Path(p) => p.ident == "crate" || p.ident == "self" || modules.contains(&p.ident.to_string()),
            _ => false,
        };
        if !own {
            self.problems.push(format!("{path}: exports something from elsewhere"));
        }
    }

    fn fields(&mut self, path: &str, named: &syn::FieldsNamed) -> Vec<Field> {
        let mut fields = Vec::new();
        let mut all = Vec::new();
        for field in &named.named {
            if !self.enabled(&field.attrs, path) {
                continue;
            }
            let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
            all.push(name.clone());
            if name.starts_with('_') {
                continue; // Padding. The offsets after it and the size tell if it is wrong.
            }
            if public(&field.vis) {
                fields.push(Field { name, signed: signed(&field.ty) });
            } else {
                self.problems.push(format!("{path}: private field {name}"));
            }
        }
        self.fields_of.push((path.into(), all));
        fields
    }

    fn type_(&mut self, path: &str, doc: &str, fields: Vec<Field>, signed: Option<bool>, generics: &syn::Generics) {
        let named = leading_code(doc).and_then(|(header, rest)| {
            let (c, rest) = leading_code(rest.strip_prefix(',')?.trim_start())?;
            let up_to = rest.strip_prefix("up to ").and_then(leading_code).map(|(field, _)| field);
            header.ends_with(".h").then_some((header, c, up_to))
        });
        let Some((header, c, up_to)) = named else {
            self.exempt_or(path, doc, "type whose documentation doesn't begin with a header and a C type");
            return;
        };
        if generics.params.iter().any(|p| !matches!(p, syn::GenericParam::Type(_))) {
            self.problems.push(format!("{path}: generic over something that isn't a type"));
            return;
        }
        self.headers.insert(header);
        let parameters = generics.params.len();
        let kind = Kind::Type { c: member_type(&c), up_to, signed, fields, parameters };
        self.entries.push(Entry { path: path.into(), abi: abi(path), kind });
    }

    fn constant(&mut self, path: &str, own_name: Option<String>, ty: &Type, doc: &str) {
        if is_exempt(doc) {
            self.exempt_or(path, doc, "");
            return;
        }
        let Some(c) = leading_code(doc).filter(|(_, rest)| rest.starts_with(':')).map(|(c, _)| c).or(own_name) else {
            self.problems.push(format!("{path}: associated constant whose documentation doesn't begin with a C name"));
            return;
        };
        let kind = match ty {
            Type::Reference(r) if type_name(&r.elem).is_some_and(|n| n == "str") => Kind::Text { c },
            Type::Path(_) => Kind::Integer { c, newtype: signed(ty).is_none() },
            _ => {
                self.problems.push(format!("{path}: constant of a kind that can't be compared"));
                return;
            }
        };
        self.entries.push(Entry { path: path.into(), abi: abi(path), kind });
    }

    /// Notes that an item is exempt, if its documentation gives a reason; else that it is a problem.
    fn exempt_or(&mut self, path: &str, doc: &str, problem: &str) {
        if is_exempt(doc) {
            let reason = doc.split_once(EXEMPT).map(|(_, reason)| reason).unwrap_or_default();
            self.exempt.push(format!("{path}: {reason}"));
        } else {
            self.problems.push(format!("{path}: {problem}"));
        }
    }

    /// Returns whether the `cfg` attributes among these, if any, hold for the target.
    fn enabled(&mut self, attrs: &[Attribute], path: &str) -> bool {
        for attr in attrs.iter().filter(|a| a.path().is_ident("cfg")) {
            match attr.parse_args::<Meta>() {
                Ok(Meta::NameValue(m)) if m.path.is_ident("target_pointer_width") => {
                    if text(&m.value).as_ref() != Some(&self.pointer_width) {
                        return false;
                    }
                }
                Ok(Meta::Path(p)) if p.is_ident("test") => return false,
                _ => self.problems.push(format!("{path}: a cfg other than target_pointer_width")),
            }
        }
        true
    }
}

fn public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}::{name}") }
}

fn abi(path: &str) -> Abi {
    match path.split("::").find(|s| s.starts_with("x86_")) {
        Some("x86_32") => Abi::Bits32,
        Some("x86_64") => Abi::Bits64,
        _ => Abi::Native,
    }
}

fn is_exempt(doc: &str) -> bool {
    doc.split_once(EXEMPT).is_some_and(|(_, reason)| !reason.trim().is_empty())
}

/// Returns the documentation of an item as one line.
fn doc(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs {
        if let Meta::NameValue(m) = &attr.meta
            && m.path.is_ident("doc")
            && let Some(line) = text(&m.value)
        {
            lines.push(line.trim().to_string());
        }
    }
    lines.join(" ")
}

fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Lit(l) => match &l.lit {
            Lit::Str(s) => Some(s.value()),
            _ => None,
        },
        _ => None,
    }
}

/// Splits a text that begins with something in backquotes into that and the rest.
fn leading_code(text: &str) -> Option<(String, &str)> {
    let (code, rest) = text.strip_prefix('`')?.split_once('`')?;
    Some((code.into(), rest.trim_start()))
}

/// Returns the last name of a type's path.
fn type_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(p) => p.path.segments.last().map(|s| s.ident.to_string()),
        _ => None,
    }
}

/// Returns whether an integer type, atomic or plain, is signed; nothing for other types.
fn signed(ty: &Type) -> Option<bool> {
    let name = type_name(ty)?;
    let name = name.strip_prefix("Atomic").unwrap_or(&name).to_lowercase();
    let (sign, width) = name.split_at_checked(1)?;
    matches!(width, "8" | "16" | "32" | "64" | "size").then_some(())?;
    match sign {
        "i" => Some(true),
        "u" => Some(false),
        _ => None,
    }
}

/// Turns `struct a.b.c` into an expression for the type of the member `b.c`; leaves other types alone.
fn member_type(c: &str) -> String {
    match c.split_once('.') {
        Some((outer, member)) => format!("__typeof__((({outer} *)0)->{member})"),
        None => c.into(),
    }
}
