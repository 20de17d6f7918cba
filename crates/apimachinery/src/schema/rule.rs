//! What validation asks of a custom resource's values besides their form: the keywords of
//! JSON Schema that `openAPIV3Schema` allows. Data only; [`crate::structural`] makes it from
//! a definition and holds values against it.

use serde_json::{Number, Value};
use std::sync::OnceLock;

/// One keyword.
#[derive(Clone, Debug)]
pub enum Rule {
    /// `null` is a value too.
    Nullable,
    /// The value is an object of its own with `apiVersion`, `kind` and `metadata`.
    Embedded,
    /// `type` inside a logical keyword.
    Type(JsonType),
    /// `format`.
    Format(Format),
    /// `enum`.
    Enum(Box<[Value]>),
    /// `pattern`.
    Pattern(Box<Pattern>),
    /// `maxLength` in characters.
    MaxLength(u64),
    /// `minLength` in characters.
    MinLength(u64),
    /// `maximum`, and whether it is exclusive.
    Maximum(Number, bool),
    /// `minimum`, and whether it is exclusive.
    Minimum(Number, bool),
    /// `multipleOf`.
    MultipleOf(Number),
    /// `maxItems`.
    MaxItems(u64),
    /// `minItems`.
    MinItems(u64),
    /// `uniqueItems` inside a logical keyword, and lists that are sets.
    UniqueItems,
    /// Items of a keyed list have different keys.
    UniqueKeys(Box<[Box<str>]>),
    /// `maxProperties`.
    MaxProperties(u64),
    /// `minProperties`.
    MinProperties(u64),
    /// `required`.
    Required(Box<[Box<str>]>),
    /// `properties` inside a logical keyword, one by one.
    Property(Box<str>, Box<[Rule]>),
    /// `items` inside a logical keyword.
    Items(Box<[Rule]>),
    /// `additionalProperties` inside a logical keyword.
    Values(Box<[Rule]>),
    /// `allOf`.
    AllOf(Box<[Box<[Rule]>]>),
    /// `anyOf`.
    AnyOf(Box<[Box<[Rule]>]>),
    /// `oneOf`.
    OneOf(Box<[Box<[Rule]>]>),
    /// `not`.
    Not(Box<[Rule]>),
}

/// Types of JSON Schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonType {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// A text.
    String,
    /// A number without a fraction.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl JsonType {
    /// Reads `type`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    /// As `type` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// Formats of strings that are checked; others say something to people only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the formats")]
pub enum Format {
    DateTime,
    Date,
    Duration,
    Byte,
    Uuid,
    Ipv4,
    Ipv6,
    Cidr,
    Mac,
    Email,
    Hostname,
    Uri,
}

impl Format {
    /// Reads `format`; `None` for one that is not checked.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "date-time" | "datetime" => Self::DateTime,
            "date" => Self::Date,
            "duration" => Self::Duration,
            "byte" => Self::Byte,
            "uuid" | "uuid3" | "uuid4" | "uuid5" => Self::Uuid,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            "cidr" => Self::Cidr,
            "mac" => Self::Mac,
            "email" => Self::Email,
            "hostname" => Self::Hostname,
            "uri" => Self::Uri,
            _ => return None,
        })
    }

    /// As `format` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DateTime => "date-time",
            Self::Date => "date",
            Self::Duration => "duration",
            Self::Byte => "byte",
            Self::Uuid => "uuid",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Cidr => "cidr",
            Self::Mac => "mac",
            Self::Email => "email",
            Self::Hostname => "hostname",
            Self::Uri => "uri",
        }
    }
}

/// A regular expression in Go's dialect, compiled when it is first used: most definitions on
/// a server are never written to.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As the definition has it.
    pub source: Box<str>,
    compiled: OnceLock<Option<regex::Regex>>,
}

impl Pattern {
    /// A pattern that [`Pattern::check`] accepts.
    pub fn new(source: &str) -> Self {
        Self {
            source: source.into(),
            compiled: OnceLock::new(),
        }
    }

    /// Whether a text can be used as a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(source: &str) -> Result<(), String> {
        compile(source).map(drop).map_err(|e| {
            let text = e.to_string();
            // The parser draws a picture; its last line says what it is.
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        })
    }

    /// Whether the pattern is found in a text. One that does not compile accepts everything.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex().is_none_or(|r| r.is_match(text))
    }

    /// The compiled pattern; `None` for one that does not compile.
    pub(crate) fn regex(&self) -> Option<&regex::Regex> {
        self.compiled
            .get_or_init(|| compile(&self.source).ok())
            .as_ref()
    }
}

fn compile(source: &str) -> Result<regex::Regex, regex::Error> {
    /// Larger automata are refused: a definition must not take the server's memory.
    const SIZE_MAX: usize = 1 << 20;
    regex::RegexBuilder::new(&from_go(source))
        .size_limit(SIZE_MAX)
        .dfa_size_limit(SIZE_MAX)
        .build()
}

/// Go's `\d`, `\w` and `\s` and their opposites mean ASCII only.
fn from_go(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 16);
    let mut in_class = false;
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    out.push('\\');
                    break;
                };
                let inner = match next.to_ascii_lowercase() {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    's' => "\\t\\n\\f\\r ",
                    _ => {
                        out.push('\\');
                        out.push(next);
                        continue;
                    }
                };
                let not = if next.is_ascii_uppercase() { "^" } else { "" };
                if in_class && not.is_empty() {
                    out.push_str(inner);
                } else {
                    out.push_str(&format!("[{not}{inner}]"));
                }
            }
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                // A bracket that comes first stands for itself.
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str("\\]");
                }
            }
            '[' => {
                // `[:alpha:]` is a class in a class; any other bracket stands for itself.
                out.push_str(if chars.peek() == Some(&':') {
                    "["
                } else {
                    "\\["
                });
                if chars.peek() == Some(&':') {
                    for c in chars.by_ref() {
                        out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            // Set operations that Go does not have.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_go_s() {
        for (pattern, text, found) in [
            ("^\\d+$", "12", true),
            ("^\\d+$", "١", false),
            ("^[\\w-]+$", "a-b_c", true),
            ("^[^\\s]+$", "a b", false),
            ("^[[]$", "[", true),
            ("^[]a]$", "]", true),
            ("^[[:alpha:]_]+$", "a_b", true),
            ("^[a&&b]+$", "a&b", true),
            ("^(\\d+(\\.\\d+)?)\\D$", "1.5s", true),
            ("b", "abc", true),
        ] {
            assert_eq!(Pattern::check(pattern), Ok(()), "{pattern}");
            assert_eq!(Pattern::new(pattern).is_match(text), found, "{pattern}");
        }
        assert!(Pattern::check("(").is_err());
        assert!(Pattern::check("a{1000}{1000}{1000}").is_err());
    }
}
