//! Every public type shows in its documentation how it is met or used.

use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, Item, Lit, Meta, UseTree, Visibility};

/// What a crate's sources define and what of it is exported by name.
#[derive(Default)]
struct Found {
    /// Name, file, and whether its documentation has an example.
    types: Vec<(String, String, bool)>,
    exported: Vec<String>,
}

#[test]
fn every_public_type_has_an_example() {
    let root = crate::root();
    let crates = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let mut without = Vec::new();
    for package in crates.chain([root.clone()]).filter(|package| package.join("src/lib.rs").exists()) {
        let mut found = Found::default();
        read(&package.join("src"), &mut found);
        assert!(!found.types.is_empty(), "{} has no types", package.display());
        let public = |name: &String| found.exported.contains(name);
        let bare = found.types.iter().filter(|(name, _, shown)| public(name) && !shown);
        without.extend(bare.map(|(name, file, _)| format!("{name} in {file}")));
    }
    assert!(without.is_empty(), "no example in the documentation of:\n{}", without.join("\n"));
}

fn read(dir: &Path, found: &mut Found) {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
            let here = path.display().to_string();
            file.items.iter().for_each(|item| look(item, &here, found));
        }
    }
}

fn look(item: &Item, file: &str, found: &mut Found) {
    let (name, visibility, attrs) = match item {
        Item::Struct(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Enum(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Trait(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Type(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Use(item) if is_public(&item.vis) => return names(&item.tree, &mut found.exported),
        _ => return,
    };
    if is_public(visibility) {
        // What stands in a module of its own need not be named again.
        if file.ends_with("/lib.rs") || file.ends_with("/mod.rs") {
            found.exported.push(name.to_string());
        }
        found.types.push((name.to_string(), file.to_owned(), has_example(attrs)));
    }
}

fn names(tree: &UseTree, out: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => names(&path.tree, out),
        UseTree::Group(group) => group.items.iter().for_each(|tree| names(tree, out)),
        UseTree::Name(name) => out.push(name.ident.to_string()),
        UseTree::Rename(_) | UseTree::Glob(_) => {}
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether there is a block of code that is run, no drawing.
fn has_example(attrs: &[Attribute]) -> bool {
    let mut open = false;
    attrs.iter().filter_map(doc_line).any(|line| {
        let Some(language) = line.trim().strip_prefix("```") else { return false };
        open = !open;
        open && language.is_empty()
    })
}

fn doc_line(attr: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attr.meta else { return None };
    match &pair.value {
        Expr::Lit(literal) if attr.path().is_ident("doc") => match &literal.lit {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}
