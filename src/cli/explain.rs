//! `explain`: what an error code means.

use marquetry::{CODES, Error};
use serde_json::json;

use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A code, such as GGUF012; without one, all are listed.
    code: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let Some(code) = &args.code else {
        return match args.json {
            true => ui.json(&json!(CODES.iter().map(|(c, t)| json!({ "code": c, "text": t })).collect::<Vec<_>>())),
            false => CODES.iter().try_for_each(|(c, t)| ui.line(&format!("{c:<8} {t}"))),
        };
    };
    let code = code.to_ascii_uppercase();
    let unknown = || Error::usage(format!("no code {code}; `marquetry explain` lists all"));
    let text = lookup(&code).ok_or_else(unknown)?;
    match args.json {
        true => ui.json(&json!({ "code": code, "text": text })),
        false => ui.line(&format!("{code}: {text}")),
    }
}

/// The entry of a code, or of its family: the letters before its digits.
fn lookup(code: &str) -> Option<&'static str> {
    let exact = CODES.iter().find(|(c, _)| *c == code);
    let family = || {
        let (name, digits) = code.split_at(code.find(|c: char| c.is_ascii_digit())?);
        let whole = |c: &str| c == name || (c == "E0" && name == "E" && digits.len() == 4);
        CODES.iter().find(|(c, _)| digits.bytes().all(|b| b.is_ascii_digit()) && whole(c))
    };
    exact.or_else(family).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::lookup;

    #[test]
    fn codes_are_found_themselves_or_by_family() {
        for code in ["CLI001", "GGUF012", "CFG003", "ST024", "TOK010", "TPL006", "RUN040", "RUN012", "E0220"] {
            assert!(lookup(code).is_some(), "{code}");
        }
        for code in ["", "XYZ001", "GGUFX", "E", "STX1"] {
            assert!(lookup(code).is_none(), "{code}");
        }
    }
}
