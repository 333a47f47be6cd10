//! `new-model`: a crate with a model that runs, to change.

use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::runtime::files;

use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the model and of the crate: small letters, digits and `_`.
    name: String,
    /// Directory to make; by default the name.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Depend on the sources in this directory instead of those in the project's repository.
    #[arg(long, value_name = "DIR")]
    sources: Option<PathBuf>,
}

/// Files of the crate, with `template` and `Template` where the name goes.
const FILES: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("../../templates/new-model/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("../../templates/new-model/src/lib.rs")),
    ("tests/model.rs", include_str!("../../templates/new-model/tests/model.rs")),
];

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let first = args.name.chars().next();
    if !first.is_some_and(|c| c.is_ascii_lowercase()) || !args.name.chars().all(good) || args.name.len() > 64 {
        let what = format!("`{}` is no name for a crate; use small letters, digits and `_`", args.name.escape_debug());
        return Err(Error::usage(what));
    }
    let dir = args.output.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    if dir.exists() {
        return Err(Error::input(&dir, "it is there already; give another --output"));
    }
    let (main, frontend) = dependencies(args.sources.as_deref())?;
    let made = |e: std::io::Error| Error::input(&dir, format!("it can not be made: {e}"));
    for (path, text) in FILES {
        let text = text.replace("MARQUETRY", &main).replace("FRONTEND", &frontend);
        let text = text.replace("Template", &camel(&args.name)).replace("template", &args.name);
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&dir)).map_err(made)?;
        files::write_file(&path, text.as_bytes())?;
    }
    ui.line(&format!("made {}; next: cd {0} && cargo test", dir.display()))
}

/// How the crate depends on `marquetry` and on its frontend.
fn dependencies(sources: Option<&Path>) -> Result<(String, String), Error> {
    let Some(dir) = sources else {
        let git = format!("{{ git = \"{}\" }}", env!("CARGO_PKG_REPOSITORY"));
        return Ok((git.clone(), git));
    };
    let dir = dir.canonicalize().map_err(|e| Error::input(dir, format!("it can not be opened: {e}")))?;
    if !dir.join("frontend/Cargo.toml").exists() {
        return Err(Error::input(&dir, "it does not hold the sources of marquetry"));
    }
    let at = |path: PathBuf| format!("{{ path = {:?} }}", path.display().to_string());
    Ok((at(dir.clone()), at(dir.join("frontend"))))
}

/// `my_model` as `MyModel`.
fn camel(name: &str) -> String {
    let word = |w: &str| {
        let mut chars = w.chars();
        chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
    };
    name.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_types() {
        assert_eq!(super::camel("my_own2_model"), "MyOwn2Model");
    }
}
