//! What chat templates expect beyond Jinja: `raise_exception`, `strftime_now`, `tojson` as in Python, generation marks.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use fancy_regex::{Captures, Regex};
use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

pub(super) const TOO_LARGE: &str = "its JSON exceeds 16 MiB";

/// A template's own refusal.
#[derive(Debug)]
pub(super) struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception(message)`.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    let message: String = message.chars().take(2000).collect();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// `value is iterable`: as in Python, text is and nothing (`none`) is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// `{% generation %}` marks what to train on; for rendering it is a block that is always there.
pub(super) fn without_generation_tags(source: &str) -> String {
    let Ok(tag) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else { return source.to_owned() };
    let replace = |c: &Captures<'_>| {
        let part = |i| c.get(i).map_or("", |m| m.as_str());
        let word = if part(2).is_empty() { "if true" } else { "endif" };
        format!("{{%{} {word} {}%}}", part(1), part(3))
    };
    tag.replace_all(source, replace).into_owned()
}

/// `value|tojson(indent, ensure_ascii, separators, sort_keys)`, as Python's `json.dumps`; not escaped for HTML.
pub(super) fn tojson(value: &Value, args: &Kwargs, used: &AtomicUsize, limit: usize) -> Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let separators: Option<Vec<String>> = args.get("separators")?;
    let default = if indent.is_some() { "," } else { ", " };
    let (item, colon) = match separators.as_deref() {
        Some([item, colon]) => (item.as_str(), colon.as_str()),
        _ => (default, ": "),
    };
    let mut writer = Dump {
        out: String::new(),
        indent: indent.map(|n| n.min(64)),
        item: &item.chars().take(16).collect::<String>(),
        colon: &colon.chars().take(16).collect::<String>(),
        ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        limit: limit.saturating_sub(used.load(Ordering::Relaxed)),
    };
    args.assert_all_used()?;
    let json = serde_json::to_value(value);
    let json = json.map_err(|_| Error::new(ErrorKind::BadSerialization, "the value has no JSON form"))?;
    writer.value(&json, 0).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, TOO_LARGE))?;
    used.fetch_add(writer.out.len(), Ordering::Relaxed);
    Ok(Value::from(writer.out))
}

/// Writes JSON the way Python does.
struct Dump<'a> {
    out: String,
    indent: Option<usize>,
    item: &'a str,
    colon: &'a str,
    ascii: bool,
    sort: bool,
    limit: usize,
}

impl Dump<'_> {
    /// `None` if the text grows past the limit.
    fn value(&mut self, value: &Json, depth: usize) -> Option<()> {
        match value {
            Json::Array(items) => {
                self.list('[', ']', items.iter(), depth, |dump, item| dump.value(item, depth + 1))?;
            }
            Json::Object(entries) => {
                let mut entries: Vec<(&String, &Json)> = entries.iter().collect();
                if self.sort {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list('{', '}', entries.into_iter(), depth, |dump, (key, value)| {
                    dump.string(key);
                    dump.out.push_str(dump.colon);
                    dump.value(value, depth + 1)
                })?;
            }
            Json::String(text) => self.string(text),
            other => self.out.push_str(&other.to_string()),
        }
        (self.out.len() <= self.limit).then_some(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        mut each: impl FnMut(&mut Self, T) -> Option<()>,
    ) -> Option<()> {
        self.out.push(open);
        let empty = items.len() == 0;
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.out.push_str(self.item);
            }
            self.line(depth + 1);
            each(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
        Some(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7F}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Year, month (1 to 12) and day of a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted in eras of 400 years from 0000-03-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day - (153 * shifted + 2) / 5 + 1)
}

/// `strftime_now(format)` in UTC, with the usual codes; others stay as they are.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], n: u64| {
        usize::try_from(n).ok().and_then(|n| names.get(n)).copied().unwrap_or_default()
    };
    let (month_name, day_name) = (name(&MONTHS, month - 1), name(&DAYS, days % 7));
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let two = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
        let twelve = |hour: u64| (hour + 11) % 12 + 1;
        match code {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&two(year % 100)),
            Some('m') => out.push_str(&two(month)),
            Some('d') => out.push_str(&two(day)),
            Some('H') => out.push_str(&two(second / 3600)),
            Some('I') => out.push_str(&two(twelve(second / 3600))),
            Some('M') => out.push_str(&two(second / 60 % 60)),
            Some('S') => out.push_str(&two(second % 60)),
            Some('p') => out.push_str(if second < 43_200 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&short(month_name)),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&short(day_name)),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(strftime("%d %b %Y", at(1_721_952_000)), "26 Jul 2024");
        assert_eq!(
            strftime("%A %F %H:%M:%S %p %-d %%%q", at(951_782_400 + 45_296)),
            "Tuesday 2000-02-29 12:34:56 PM 29 %%q"
        );
        assert_eq!(strftime("%a %B %y %I", at(0)), "Thu January 70 12");
    }
}
