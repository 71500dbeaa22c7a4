//! The page.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::notes::{NOTES, Note, SIZING};
use super::read::{Constant, Setting, Sources, tokens};
use super::value::{Names, Unit};

const HEAD: &str = "\
<!-- Written by `cargo xtask limits`. The check `limits` fails when it is stale. -->

# Limits

Every queue, table and time is bounded. Options bound one connection or one pool, and are set where these are described:
`zc::FabricBuilder`, `BufPool::builder()`, `zc_http::Server` and `Channel::builder()`, `ShmTransport::new`. Constants need
another build. \"Memory\" says what an option costs at most.
";

pub(super) fn text(sources: &Sources) -> Result<String, String> {
    let names = Names::of(&sources.constants);
    let mut page = HEAD.to_owned();
    options(&mut page, &sources.settings, &names)?;
    variables(&mut page, sources)?;
    constants(&mut page, &sources.constants, &names);
    page.push_str("\n## Sizing\n\n");
    page.push_str(&filled_in(SIZING, &sources.constants, &names)?);
    Ok(page)
}

fn options(page: &mut String, settings: &[Setting], names: &Names) -> Result<(), String> {
    page.push_str("\n## Options\n");
    if let Some(note) =
        NOTES.iter().find(|note| !settings.iter().any(|setting| called(setting) == note.option))
    {
        return Err(format!("xtask/src/limits/notes.rs has a note about {}, which is gone", note.option));
    }
    let mut by_crate: BTreeMap<&str, Vec<&Setting>> = BTreeMap::new();
    for setting in settings {
        by_crate.entry(crate_of(&setting.file)).or_default().push(setting);
    }
    for (krate, mut settings) in by_crate {
        settings.sort_by(|a, b| a.owner.cmp(&b.owner));
        let rows: String = settings.iter().filter_map(|setting| option(setting, names)).collect();
        let _ = write!(
            page,
            "\n### {krate}\n\n| option | unit | default | may be | what it bounds | memory | variable |\n\
             |---|---|---|---|---|---|---|\n{rows}"
        );
    }
    Ok(())
}

fn called(setting: &Setting) -> String {
    format!("{}::{}", setting.owner, setting.name)
}

/// Its row, if it is a bound or has a note.
fn option(setting: &Setting, names: &Names) -> Option<String> {
    let name = called(setting);
    let note = NOTES.iter().find(|note| note.option == name);
    let unit = Unit::of(&setting.ty, &setting.name, &setting.doc);
    // Names, backings and objects are no bounds; a note says if one matters all the same.
    if unit == Unit::None && note.is_none() {
        return None;
    }
    let default = setting.default.as_ref().map_or_else(String::new, |expr| match names.value(expr) {
        Some(value) => unit.show(value),
        None if tokens(expr) == "None" => "see there".to_owned(),
        None => format!("`{}`", tokens(expr)),
    });
    let Note { range, memory, variable, .. } =
        note.unwrap_or(&Note { option: "", range: "", memory: "", variable: "" });
    let variable = if variable.is_empty() { String::new() } else { format!("`{variable}`") };
    let (unit, about) = (unit.word(), cell(&setting.doc));
    Some(format!("| `{name}` | {unit} | {default} | {range} | {about} | {memory} | {variable} |\n"))
}

/// The name of the crate that a source file belongs to.
fn crate_of(file: &str) -> &str {
    match file.strip_prefix("crates/") {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => "zc",
    }
}

fn variables(page: &mut String, sources: &Sources) -> Result<(), String> {
    let mut unknown = NOTES.iter().filter(|note| !note.variable.is_empty());
    if let Some(note) = unknown.find(|note| !sources.variables.iter().any(|(name, ..)| name == note.variable))
    {
        return Err(format!("xtask/src/limits/notes.rs names the variable {}, which is gone", note.variable));
    }
    page.push_str("\n## Environment\n\n| variable | effect | file |\n|---|---|---|\n");
    for (name, doc, file) in &sources.variables {
        let _ = writeln!(page, "| `{name}` | {} | `{file}` |", cell(doc));
    }
    Ok(())
}

fn constants(page: &mut String, constants: &[Constant], names: &Names) {
    page.push_str("\n## Constants\n");
    let mut by_crate: BTreeMap<&str, Vec<&Constant>> = BTreeMap::new();
    for constant in constants.iter().filter(|constant| constant.documented) {
        by_crate.entry(crate_of(&constant.file)).or_default().push(constant);
    }
    for (krate, constants) in by_crate {
        let _ = write!(
            page,
            "\n### {krate}\n\n| constant | value | what it bounds | file |\n|---|---|---|---|\n"
        );
        for constant in constants {
            let unit = Unit::of(&constant.ty, &constant.name, &constant.doc);
            let value = match names.value(&constant.expr) {
                Some(value) => unit.show(value),
                None => format!("`{}`", tokens(&constant.expr)),
            };
            let _ = writeln!(
                page,
                "| `{}` | {value} | {} | `{}` |",
                constant.name,
                cell(&constant.doc),
                constant.file
            );
        }
    }
}

/// Text for a cell of a table: links to code become its name.
fn cell(doc: &str) -> String {
    let mut text = doc.trim_end_matches(['.', ' ']).replace('|', "\\|").replace("[`", "`");
    while let Some(end) = text.find("`](") {
        let Some(close) = text[end..].find(')') else { break };
        text.replace_range(end + 1..=end + close, "");
    }
    text.replace("`]", "`")
}

fn filled_in(template: &str, constants: &[Constant], names: &Names) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((front, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("a { without its }")?;
        let constant = constants.iter().find(|constant| constant.name == name);
        let value = names.named(name);
        let (Some(constant), Some(value)) = (constant, value) else {
            return Err(format!(
                "xtask/src/limits/notes.rs names the constant {name}: it is gone, or several differ"
            ));
        };
        text.push_str(front);
        text.push_str(&Unit::of(&constant.ty, name, &constant.doc).show(value));
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_names() {
        assert_eq!(cell("See [`A`] and [`B`](super::B) | c."), "See `A` and `B` \\| c");
    }

    #[test]
    fn a_constant_that_is_gone_is_an_error() {
        let names = Names::of(&[]);
        assert!(filled_in("a {GONE} b", &[], &names).is_err());
        assert_eq!(filled_in("plain", &[], &names).as_deref(), Ok("plain"));
    }
}
