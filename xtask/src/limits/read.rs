//! Finds constants, options and environment variables in the sources.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, FnArg, ImplItem, Item, Lit, Meta, Pat, ReturnType, Type, Visibility};

/// A type whose name ends like this holds options: its public fields.
const OPTION_TYPES: &[&str] = &["Options", "Limits", "Deadlines", "Config", "Settings"];
/// A type whose name ends like this is set up by its methods.
const BUILDER: &str = "Builder";
/// Constants that are no bounds: layouts, codes and indices.
const NOT_BOUNDS: &[&str] = &[
    "ACK",
    "APP_FIRST",
    "BY_REFERENCE",
    "CONSUMED",
    "CONTROL_LANE",
    "HUGE_1G",
    "HUGE_2M",
    "IDLE",
    "LARGE",
    "MAGIC",
    "MORE",
    "NOBODY",
    "NONCE",
    "OVERFLOW_UID",
    "PASSED_ON",
    "PATIENT",
    "PAYLOAD",
    "PLACES",
    "RX_SLEEP",
    "SHARED",
    "SLOT_WORDS",
    "TAKEN",
    "TLV_REQUIRED",
    "TX_SLEEP",
    "VERSION",
];
const NOT_BOUNDS_PREFIX: &str = "FLAG_";
const NOT_BOUNDS_SUFFIX: &str = "_HEADER_BYTES";
/// Its constants bound tests only.
const NOT_READ: &str = "zc-conformance";

/// A constant.
pub(super) struct Constant {
    /// With its type in front, if it belongs to one.
    pub(super) name: String,
    pub(super) file: String,
    pub(super) doc: String,
    pub(super) ty: String,
    pub(super) expr: Expr,
    pub(super) documented: bool,
}

/// Something that can be set.
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) doc: String,
    pub(super) ty: String,
    pub(super) default: Option<Expr>,
}

#[derive(Default)]
pub(super) struct Sources {
    pub(super) constants: Vec<Constant>,
    pub(super) settings: Vec<Setting>,
    /// Environment variables, from string constants named `ENV_…`: name, words and file.
    pub(super) variables: Vec<(String, String, String)>,
}

/// Reads the library and program sources of every package, but no tests.
pub(super) fn sources(root: &Path) -> Result<Sources, String> {
    let mut packages = vec![root.to_owned()];
    packages.extend(children(&root.join("crates"))?.into_iter().filter(|dir| !dir.ends_with(NOT_READ)));
    let mut files = Vec::new();
    for package in packages {
        rust_files(&package.join("src"), &mut files)?;
    }
    let mut found = Sources::default();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let mut literals = Literals::default();
        literals.visit_file(&parsed);
        found.add(&name, &parsed.items, &literals.0);
    }
    Ok(found)
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for path in children(dir)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if stem == "tests" || stem.ends_with("_tests") {
            continue;
        }
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The values that each type's fields get where it is made first.
#[derive(Default)]
struct Literals(HashMap<String, HashMap<String, Expr>>);

impl<'ast> Visit<'ast> for Literals {
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        // `Self { … }` counts in `impl Default` only: elsewhere it may say anything.
        let default = item.trait_.as_ref().is_some_and(|(path, ..)| last(path) == "Default");
        let Some(owner) = default.then(|| type_name(&item.self_ty)) else {
            return visit::visit_item_impl(self, item);
        };
        let mut inner = Literals::default();
        visit::visit_item_impl(&mut inner, item);
        if let Some(fields) = inner.0.remove("Self") {
            self.0.insert(owner, fields);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_expr_struct(&mut self, literal: &'ast syn::ExprStruct) {
        let fields = literal.fields.iter().filter_map(|field| match &field.member {
            syn::Member::Named(name) => Some((name.to_string(), field.expr.clone())),
            syn::Member::Unnamed(_) => None,
        });
        self.0.entry(last(&literal.path)).or_insert_with(|| fields.collect());
        visit::visit_expr_struct(self, literal);
    }
}

impl Sources {
    fn add(&mut self, file: &str, items: &[Item], literals: &HashMap<String, HashMap<String, Expr>>) {
        for item in items {
            match item {
                Item::Const(item) if !for_tests(&item.attrs) => {
                    self.constant(file, item.ident.to_string(), &item.attrs, &item.ty, &item.expr);
                }
                Item::Mod(item) if !for_tests(&item.attrs) => {
                    if let Some((_, items)) = &item.content {
                        self.add(file, items, literals);
                    }
                }
                Item::Struct(item) if is_public(&item.vis) => self.options(file, item, literals),
                Item::Impl(item) if !for_tests(&item.attrs) => self.implementation(file, item, literals),
                _ => {}
            }
        }
    }

    fn constant(&mut self, file: &str, name: String, attrs: &[Attribute], ty: &Type, expr: &Expr) {
        let (doc, ty, file) = (doc(attrs), tokens(ty), file.to_owned());
        if let (Some(_), Expr::Lit(literal)) = (name.strip_prefix("ENV_"), expr)
            && let Lit::Str(variable) = &literal.lit
        {
            self.variables.push((variable.value(), doc, file));
            return;
        }
        let number = ["usize", "isize", "u8", "u16", "u32", "u64", "i32", "i64", "Duration"].contains(&&*ty);
        let simple = name.rsplit("::").next().unwrap_or(&name);
        let layout = simple.starts_with(NOT_BOUNDS_PREFIX) || simple.ends_with(NOT_BOUNDS_SUFFIX);
        let bound = !NOT_BOUNDS.contains(&simple) && !layout;
        if number {
            let documented = bound && !doc.is_empty();
            self.constants.push(Constant { name, file, doc, ty, expr: expr.clone(), documented });
        }
    }

    fn options(
        &mut self,
        file: &str,
        item: &syn::ItemStruct,
        literals: &HashMap<String, HashMap<String, Expr>>,
    ) {
        let owner = item.ident.to_string();
        let Some(defaults) = literals.get(&owner) else { return };
        if !OPTION_TYPES.iter().any(|end| owner.ends_with(end)) {
            return;
        }
        for field in item.fields.iter().filter(|field| is_public(&field.vis)) {
            let Some(name) = field.ident.as_ref().map(ToString::to_string) else { continue };
            let default = defaults.get(&name).cloned();
            let (doc, ty) = (doc(&field.attrs), tokens(&field.ty));
            let (file, owner) = (file.to_owned(), owner.clone());
            self.settings.push(Setting { file, owner, name, doc, ty, default });
        }
    }

    fn implementation(
        &mut self,
        file: &str,
        item: &syn::ItemImpl,
        literals: &HashMap<String, HashMap<String, Expr>>,
    ) {
        let owner = type_name(&item.self_ty);
        for inner in &item.items {
            match inner {
                ImplItem::Const(inner) if item.trait_.is_none() => {
                    let name = format!("{owner}::{}", inner.ident);
                    self.constant(file, name, &inner.attrs, &inner.ty, &inner.expr);
                }
                ImplItem::Fn(inner) if owner.ends_with(BUILDER) && is_public(&inner.vis) => {
                    if let Some(ty) = setter(&inner.sig) {
                        let name = inner.sig.ident.to_string();
                        let default = literals.get(&owner).and_then(|fields| fields.get(&name)).cloned();
                        let doc = doc(&inner.attrs);
                        let (file, owner) = (file.to_owned(), owner.clone());
                        self.settings.push(Setting { file, owner, name, doc, ty, default });
                    }
                }
                _ => {}
            }
        }
    }
}

/// The type that `fn(mut self, value: T) -> Self` takes.
fn setter(signature: &syn::Signature) -> Option<String> {
    let (Some(FnArg::Receiver(_)), Some(FnArg::Typed(value)), 2) =
        (signature.inputs.first(), signature.inputs.last(), signature.inputs.len())
    else {
        return None;
    };
    let ReturnType::Type(_, returned) = &signature.output else { return None };
    (type_name(returned) == "Self" && matches!(&*value.pat, Pat::Ident(_))).then(|| tokens(&value.ty))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn for_tests(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        Meta::List(list) if attr.path().is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.contains("test ,") || condition.contains(", test")
        }
        _ => false,
    })
}

/// The first paragraph, in one line.
fn doc(attrs: &[Attribute]) -> String {
    let lines = attrs.iter().filter(|attr| attr.path().is_ident("doc")).map(|attr| match &attr.meta {
        Meta::NameValue(pair) => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => text.value().trim().to_owned(),
                _ => String::new(),
            },
            _ => String::new(),
        },
        _ => String::new(),
    });
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn last(path: &syn::Path) -> String {
    path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
}

fn type_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => last(&path.path),
        _ => String::new(),
    }
}

/// Source text of a piece of syntax, spaced like Rust.
pub(super) fn tokens(piece: &impl quote::ToTokens) -> String {
    let text = piece.to_token_stream().to_string();
    [
        (" :: ", "::"),
        (" < ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ,", ","),
    ]
    .iter()
    .fold(text, |text, (from, to)| text.replace(from, to))
}
